"""What arrives at a cluster and when: one record type for recorded traces and synthetic load, and the processes that
say when.

A workload is an iterator of `Arrival`s in order of time, made from a seed and nothing else, so that a million requests
cost no memory and every policy can be given exactly the same load. Lengths and prefixes come from a source of `Shape`s
(a trace, or a distribution), times from an arrival process or from the trace itself; `combine` joins the two. Sessions
(`workload_sessions.py`) bring their own times.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class WorkloadError(ValueError):
    """The load as asked for cannot be made."""


class Image(NamedTuple):
    """An image by name: equal names are equal pixels. `tokens` of the prompt are its embeddings; encoding it takes
    `patches` encoder positions."""

    name: int
    tokens: int
    patches: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What one request asks for.

    Attributes:
        prompt_tokens, output_tokens: lengths, images included; exactly so many are generated.
        session: requests of one session have prompts that are prefixes of one another and of what was answered.
        blocks: prefix blocks of `block_tokens` tokens by name: prompts share the KV of the leading blocks that they
            have in common. Empty: unknown, and then a prompt without a session shares nothing with any other.
        images: what its prompt begins with; the text follows (workload_images.py).
    """

    prompt_tokens: int
    output_tokens: int
    session: int | None = None
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    images: tuple[Image, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Tokens of the prompt that are embeddings of its images."""
        return sum(image.tokens for image in self.images)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Request number `serial` arrives `at` seconds after the start."""

    serial: int
    at: float
    shape: Shape


def combine(times: Iterator[float], shapes: Iterator[Shape]) -> Iterator[Arrival]:
    """The n-th shape arrives at the n-th time; ends with the shorter of the two."""
    for serial, (at, shape) in enumerate(zip(times, shapes, strict=False)):
        yield Arrival(serial, at, shape)


# ---- when -----------------------------------------------------------------------------------------------------------


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Independent arrivals, `rate` a second: exponential gaps."""
    _positive(rate=rate)
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def gamma(rate: float, cv: float, rng: random.Random) -> Iterator[float]:
    """Renewal process with gamma-distributed gaps of mean 1/rate and coefficient of variation `cv`: 1 is Poisson, more
    is burstier (as the load generators of AlpaServe and vLLM do it)."""
    _positive(rate=rate, cv=cv)
    shape = 1.0 / (cv * cv)
    scale = 1.0 / (rate * shape)
    now = 0.0
    while True:
        now += rng.gammavariate(shape, scale)
        yield now


def mmpp(rate: float, burst: float, calm_seconds: float, burst_seconds: float, rng: random.Random) -> Iterator[float]:
    """Markov-modulated Poisson process with two states: calm, and bursts in which `burst` times as much arrives. States
    last exponential times with the given means; the long-run mean is `rate`."""
    _positive(rate=rate, burst=burst, calm_seconds=calm_seconds, burst_seconds=burst_seconds)
    calm = rate * (calm_seconds + burst_seconds) / (calm_seconds + burst * burst_seconds)
    rates, means = (calm, burst * calm), (calm_seconds, burst_seconds)
    state, now = 0, 0.0
    change = rng.expovariate(1 / means[state])
    while True:
        gap = rng.expovariate(rates[state])
        if now + gap < change:
            now += gap
            yield now
        else:  # memoryless: what was left of the gap is drawn anew at the new rate
            now, state = change, 1 - state
            change = now + rng.expovariate(1 / means[state])


def diurnal(rate: float, period: float, swing: float, rng: random.Random) -> Iterator[float]:
    """Poisson arrivals whose rate follows a sine of `period` seconds around the mean `rate`, from (1 - swing) to (1 +
    swing) times it; starts at the mean, rising. Made by thinning (Lewis and Shedler 1979)."""
    _positive(rate=rate, period=period)
    if not 0 <= swing <= 1:
        raise WorkloadError(f"swing is {swing}; expected 0 (constant) to 1 (down to nothing)")
    for now in poisson(rate * (1 + swing), rng):
        if rng.random() * (1 + swing) < 1 + swing * math.sin(2 * math.pi * now / period):
            yield now


# ---- what -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of lengths in tokens: `mean`, coefficient of variation `cv` (0: always the mean), cut
    to 1..most."""

    mean: float
    cv: float = 0.0
    most: int = 1 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= self.most or not 0 <= self.cv < math.inf:
            raise WorkloadError(f"lengths need a mean of 1 to {self.most} tokens and a cv of at least 0, not {self}")

    def draw(self, rng: random.Random) -> int:
        if self.cv == 0:
            return round(self.mean)
        variance = math.log1p(self.cv * self.cv)
        value = rng.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(max(1, round(value)), self.most)


PROMPTS, QUESTIONS, OUTPUTS = (
    Lengths(512, 1.0),
    Lengths(64, 1.0),
    Lengths(128, 1.0),
)  # defaults: short chats, as in the Azure trace of conversations


def drawn(prompt: Lengths, output: Lengths, rng: random.Random) -> Iterator[Shape]:
    """Independent requests with lengths from two distributions; no two share a prefix."""
    while True:
        yield Shape(prompt.draw(rng), output.draw(rng))


def fitted(shapes: Iterator[Shape], most: int) -> Iterator[Shape]:
    """Cut requests to at most `most` tokens in all, prompt and output, as a server's context limit would have it:
    output first, down to one."""
    for s in shapes:
        if s.prompt_tokens + s.output_tokens <= most:
            yield s
            continue
        prompt = min(s.prompt_tokens, most - 1)
        blocks = s.blocks[: -(-prompt // s.block_tokens)] if s.blocks else ()
        yield Shape(prompt, min(s.output_tokens, most - prompt), s.session, blocks, s.block_tokens, s.images)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise WorkloadError(f"{name} is {value}; expected a positive number")

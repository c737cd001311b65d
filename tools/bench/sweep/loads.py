"""Loads by name, and what they are for a model and a rate: when requests come and how long they are, the same for every topology.

    conversation   the Azure trace of conversations: its arrivals, stretched to the rate, and its lengths
    code           the Azure trace of code completion
    poisson        independent arrivals, given lengths
    long           the same with prompts of half the context
    images         the same with 1 to 8 pictures a request, no two alike
    text           the control of images: its requests without their pictures

Options follow after colons: `poisson:input=300:output=100:cv=0.5`, `images:images=2-4:size=336x336`, `conversation:scale=0.1`; `ttft=` and
`tpot=` are objectives of this load alone, in seconds. A trace's lengths are multiplied by one factor, so that 99 % of its
requests fit the model's context; longer ones are cut. Every load is stretched to exactly its rate.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.simulation import traces
from triptych.runtime.simulation.slo import Slo
from triptych.runtime.simulation.workload import Lengths, WorkloadError, poisson
from triptych.tools.bench.workload import WHOLE_TRACES as TRACES

PICTURED = ("images", "text")
KINDS = (*TRACES, "poisson", "long", *PICTURED)
FITS = 0.99  # of a trace's requests, after scaling


@dataclass(frozen=True)
class Load:
    """One load as asked for. Lengths are in tokens; None: by the context. `input` of pictured requests is their text."""

    name: str
    kind: str
    slo: Slo
    input: float | None = None
    output: float | None = None
    cv: float = 0.0
    scale: float | None = None
    images: tuple[int, int] = (1, 8)
    size: tuple[int, int] = (448, 448)

    @property
    def seen(self) -> bool:
        """Whether the model must see."""
        return self.kind in PICTURED


@dataclass(frozen=True)
class Sent:
    """One request: due `at` seconds after the start, so many tokens of text and of output, so many pictures."""

    at: float
    text: int
    output: int
    images: int = 0


@dataclass(frozen=True)
class Room:
    """What the model leaves: tokens of prompt and output together, and tokens that one picture takes (0: it does not see)."""

    context: int
    image_tokens: int = 0


def parse_loads(text: str, slo: Slo) -> tuple[Load, ...]:
    """`conversation,images:images=2-4`. Raises ConfigError naming what is wrong."""
    loads = tuple(_parse(part.strip(), slo) for part in text.split(","))
    if len({load.name for load in loads}) < len(loads):
        raise ConfigError(f"--loads {text} names the same one twice")
    return loads


def _parse(name: str, slo: Slo) -> Load:
    kind, *options = name.split(":")
    if kind not in KINDS:
        raise ConfigError(f"no load {kind!r}; there are {', '.join(KINDS)}")
    load = Load(name, kind, slo)
    for option in options:
        key, equals, value = option.partition("=")
        try:
            if not equals:
                raise ValueError("expected NAME=VALUE")
            load = _with(load, key, value)
        except ValueError as error:
            raise ConfigError(f"load {name}, {option!r}: {error}") from error
    return load


def _with(load: Load, key: str, value: str) -> Load:
    allowed = {"ttft", "tpot"} | ({"scale"} if load.kind in TRACES else {"input", "output", "cv"})
    if load.seen:
        allowed |= {"images", "size"}
    if key not in allowed:
        raise ValueError(f"{load.kind} has {', '.join(sorted(allowed))}")
    if key in ("ttft", "tpot"):
        return replace(load, slo=replace(load.slo, **{key: float(value)}))
    if key in ("images", "size"):
        first, _, second = value.partition("-" if key == "images" else "x")
        pair = (int(first), int(second or first))
        if min(pair) < 1 or (key == "images" and pair[0] > pair[1]):
            raise ValueError("expected FROM-TO, at least 1" if key == "images" else "expected WIDTHxHEIGHT")
        return replace(load, **{key: pair})
    number = float(value)
    if not 0 <= number < float("inf") or (number == 0 and key != "cv"):
        raise ValueError("expected a positive number")
    return replace(load, **{key: number})


class Source:
    """A load for one model. `note` says in words what was made of the load, so that nobody takes it for something else.

    Raises ConfigError if the load does not fit the context.
    """

    def __init__(self, load: Load, room: Room, seed: int = 0):
        self.load, self.seed = load, seed
        self._room = room
        self._trace: traces.Trace | None = None
        if load.kind in TRACES:
            self._trace = traces.load(TRACES[load.kind])
            totals = np.array([shape.prompt_tokens + shape.output_tokens for shape in self._trace.shapes])
            self._scale = load.scale or min(1.0, room.context / float(np.quantile(totals, FITS)))
            cut = float((totals * self._scale > room.context).mean())
            self.note = (
                f"{self._trace.name}, its arrivals stretched, lengths times {self._scale:.3g}; {cut:.1%} of the trace is "
                f"cut to the context of {room.context}"
            )
        else:
            self._lengths, self._images, self.note = _drawn(load, room)

    def requests(self, rate: float, warm: int, judged: int) -> list[Sent]:
        """`warm` requests and then `judged` ones, at `rate` a second. Each part is stretched to span exactly its number over the rate,
        with the gap after its last one: bursts stay, and no rate is judged by a part of the trace in which more came, or less."""
        kind = "images" if self.load.kind == "text" else self.load.kind  # the very requests whose pictures are left out
        rng = random.Random(f"{self.seed}/{kind}/{rate:.6g}/{warm}/{judged}")
        if self._trace is None:
            times, bodies = poisson(rate, rng), self._random(rng)
        else:
            times, bodies = self._trace.times_forever(rate), self._replayed()
        due = list(islice(times, warm + judged + 1))
        at = _stretched(due[: warm + 1], rate)[:-1] + [warm / rate + t for t in _stretched(due[warm:], rate)[:-1]]
        return [replace(body, at=when) for when, body in zip(at, bodies, strict=False)]

    def _replayed(self) -> Iterator[Sent]:
        assert self._trace is not None
        most = self._room.context
        for shape in self._trace.shapes_forever():
            text = min(max(1, round(shape.prompt_tokens * self._scale)), most - 1)
            yield Sent(0.0, text, min(max(1, round(shape.output_tokens * self._scale)), most - text))

    def _random(self, rng: random.Random) -> Iterator[Sent]:
        first, last = self._images
        while True:
            images = rng.randint(first, last) if self.load.seen else 0
            room = self._room.context - images * self._room.image_tokens
            text = min(self._lengths[0].draw(rng), room - 1)
            output = min(self._lengths[1].draw(rng), room - text)
            yield Sent(0.0, text, output, images if self.load.kind == "images" else 0)


def _stretched(times: Sequence[float], rate: float) -> list[float]:
    """The times from 0 on, so that the last one is at their number of gaps over the rate."""
    span = times[-1] - times[0]
    stretch = ((len(times) - 1) / rate) / span if span > 0 else 0.0
    return [(at - times[0]) * stretch for at in times]


def _drawn(load: Load, room: Room) -> tuple[tuple[Lengths, Lengths], tuple[int, int], str]:
    """Lengths of text and output, pictures a request, and the note."""
    halves = {"long": (0.5, 0.0625), "poisson": (0.5, 0.25), "images": (0.125, 0.125), "text": (0.125, 0.125)}
    most = {"long": (float("inf"), 64.0), "poisson": (512.0, 128.0), "images": (64.0, 64.0), "text": (64.0, 64.0)}
    by_context = [
        max(1.0, float(int(min(share * room.context, cap))))
        for share, cap in zip(halves[load.kind], most[load.kind], strict=True)
    ]
    text, output = load.input or by_context[0], load.output or by_context[1]
    left = room.context - text - output
    if left < 0:
        raise ConfigError(f"load {load.name}: {text:g} tokens in and {output:g} out do not fit {room.context}")
    try:
        lengths = Lengths(text, load.cv), Lengths(output, load.cv)
    except WorkloadError as error:
        raise ConfigError(f"load {load.name}: {error}") from error
    note = f"Poisson, {text:g} tokens of text in and {output:g} out (cv {load.cv:g})"
    first, last = load.images
    if load.seen:
        if not room.image_tokens:
            raise ConfigError(f"load {load.name}: the model takes no images, or its placeholder is not one token")
        fit = int(left // room.image_tokens)
        if fit < first:
            raise ConfigError(
                f"load {load.name}: {first} images of {room.image_tokens} tokens do not fit {room.context}"
            )
        last = min(last, fit)
        width, height = load.size
        shown = f"{first} to {last} images of {width} x {height} ({room.image_tokens} tokens each)"
        note += f", {shown}" if load.kind == "images" else f"; the control of {shown}: the same requests without them"
        if last < load.images[1]:
            note += f"; {load.images[1]} were asked for, more than {last} do not fit the context of {room.context}"
    return lengths, (first, last), note

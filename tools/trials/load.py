"""Requests whose every token is known beforehand, sent by real clients and checked as they stream.

The known tokens come from the same deployment before anything is done to it: in fp32 a draw depends on (seed, sample, position) alone, so whatever
happens later, a token that differs is a wrong one, a position that is missing a lost one, and one that comes twice a duplicate.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from triptych.runtime.client import AsyncClient, Result
from triptych.runtime.core.errors import Status, TriptychError
from triptych.tools.trials.uploads import Uploads

LIMIT = 60.0  # seconds a request may take, patience and two recoveries included
HUNG = LIMIT + 10.0  # seconds after which a request that has not ended has been forgotten
RETRY_FOR = 60.0  # seconds in which a request that failed with a reason must succeed, sent again
RETRY_EVERY = 0.5
FRESH_SHARE = 0.3  # of the requests, where there are fresh ones
LEARNERS = 4  # requests at a time while their tokens are learned


@dataclass(frozen=True)
class Spec:
    """One kind of request, and what it gives: token ids and finish reason of each sample. `images` are files."""

    name: str
    arguments: dict[str, Any]
    expected: tuple[tuple[tuple[int, ...], str | None], ...] = ()
    images: tuple[bytes, ...] = ()
    uploaded: bool = False
    """Whether its images are uploaded before, and named by their handles."""


@dataclass(frozen=True)
class Outcome:
    """How one request ended. `status` OK, or the one it failed with; None if it never ended. Times are of time.monotonic."""

    spec: str
    began: float
    ended: float
    status: Status | None
    reason: str = ""
    admitted: bool = False
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    attempts: int = 1
    retried: bool | None = None
    """Whether the same request succeeded when it was sent again; None if it was not."""

    @property
    def exact(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong)


def kinds(rng: random.Random) -> list[Spec]:
    """Greedy and seeded streams, short and long, one sample and three, with what makes recovery hard: penalties and stop tokens."""

    def prompt(length: int) -> list[int]:
        return [rng.randrange(200) for _ in range(length)]

    seeded: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True}
    return [
        Spec("greedy", {"token_ids": prompt(5), "temperature": 0.0, "max_tokens": 120, "ignore_eos": True}),
        Spec("greedy, long prompt", {"token_ids": prompt(90), "temperature": 0.0, "max_tokens": 60, "ignore_eos": True}),
        Spec("short", {"token_ids": prompt(3), "max_tokens": 2, "seed": 5, **seeded}),
        Spec("seeded", {"token_ids": prompt(8), "max_tokens": 140, "seed": 6, **seeded}),
        Spec("three samples", {"token_ids": prompt(20), "max_tokens": 60, "seed": 7, "n": 3, **seeded}),
        Spec("penalties", {"token_ids": prompt(7), "max_tokens": 90, "seed": 8, "presence_penalty": 1.0, "repetition_penalty": 1.2, **seeded}),
        Spec("eos", {"token_ids": prompt(6), "max_tokens": 100, "seed": 9, "temperature": 1.0}),
    ]  # fmt: skip


async def learn(client: AsyncClient, specs: Sequence[Spec]) -> list[Spec]:
    """The same kinds with what they give, asked twice: a deployment that disagrees with itself can be held to nothing. Raises RuntimeError then."""
    uploads, several = Uploads(), asyncio.Semaphore(LEARNERS)

    async def one(spec: Spec) -> Spec:
        async with several:
            first, second = [
                _shape(await client.complete(timeout=LIMIT, **await _arguments(client, spec, uploads)))
                for _ in range(2)
            ]
        if first != second:
            raise RuntimeError(f"request {spec.name!r} gave other tokens the second time, before anything was done")
        return replace(spec, expected=first)

    return list(await asyncio.gather(*map(one, specs)))


async def _arguments(client: AsyncClient, spec: Spec, uploads: Uploads) -> dict[str, Any]:
    """Those of the request, with its images: as files, or as handles."""
    if not spec.images:
        return spec.arguments
    given = [await uploads.given(client, data) if spec.uploaded else data for data in spec.images]
    return {**spec.arguments, "images": given}


def _shape(result: Result) -> tuple[tuple[tuple[int, ...], str | None], ...]:
    return tuple((tuple(sample.token_ids), sample.finish_reason) for sample in result.samples)


async def send(client: AsyncClient, spec: Spec, uploads: Uploads | None = None) -> Outcome:
    """One request to its end, checked. Raises nothing of the server's. An upload that the gateway does not know any more is brought again."""
    uploads = uploads or Uploads()
    outcome = await _send(client, spec, uploads)
    if spec.uploaded and outcome.status is Status.NOT_FOUND:
        uploads.forget()
        outcome = replace(await _send(client, spec, uploads), began=outcome.began)
    return outcome


async def _send(client: AsyncClient, spec: Spec, uploads: Uploads) -> Outcome:
    began, result, status, reason = time.monotonic(), Result(), Status.OK, ""
    try:
        async with asyncio.timeout(HUNG):
            arguments = await _arguments(client, spec, uploads)
            async with client.generate(timeout=LIMIT, **arguments) as stream:
                result = stream.result
                async for _ in stream:
                    pass
    except TriptychError as error:
        status, reason = error.status, error.message
    except TimeoutError:
        status, reason = None, f"no end after {HUNG:g} s"
    lost = duplicated = wrong = 0
    for index, (tokens, finish) in enumerate(spec.expected):
        sample = result.samples[index] if index < len(result.samples) else None
        seen = {} if sample is None else {token.position - result.prompt_tokens: token.id for token in sample.tokens}
        duplicated += (0 if sample is None else len(sample.tokens)) - len(seen)
        wrong += sum(at >= len(tokens) or tokens[at] != token for at, token in seen.items())
        reach = len(tokens) if status is Status.OK else max(seen, default=-1) + 1
        lost += sum(at not in seen for at in range(reach))
        wrong += status is Status.OK and sample is not None and sample.finish_reason != finish
    attempts = result.timings.attempts if result.timings is not None else 1
    admitted = bool(result.request_id)
    return Outcome(spec.name, began, time.monotonic(), status, reason, admitted, lost, duplicated, wrong, attempts)


@dataclass
class Load:
    """Clients that send one request after the other until `stop` is set. Outcomes pile up here. `pause` lets what runs end and holds the rest back.

    `specs` are drawn at random, those of `fresh` are taken in turn.
    """

    connect: Callable[[], AsyncClient]
    specs: Sequence[Spec]
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    fresh: Sequence[Spec] = ()
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)
    _running: int = 0
    _turns: Iterator[Spec] = field(init=False)

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.fresh)

    async def pause(self) -> None:
        """Returns when no request runs any more."""
        self._go.clear()
        while self._running:
            await asyncio.sleep(0.02)

    def resume(self) -> None:
        self._go.set()

    async def run(self, clients: int) -> None:
        rngs = [random.Random(f"{self.seed}/client/{number}") for number in range(clients)]
        await asyncio.gather(
            *map(self._client, rngs)
        )  # not a TaskGroup, which would let a cancelled client go unnoticed

    async def _client(self, rng: random.Random) -> None:
        uploads = Uploads()
        async with self.connect() as client:
            while not self.stop.is_set():
                await self._go.wait()
                self._running += 1
                try:
                    await self._one(client, self._next(rng), uploads)
                finally:
                    self._running -= 1
                await asyncio.sleep(rng.uniform(0.0, 0.05))

    def _next(self, rng: random.Random) -> Spec:
        return next(self._turns) if self.fresh and rng.random() < FRESH_SHARE else rng.choice(self.specs)

    async def _one(self, client: AsyncClient, spec: Spec, uploads: Uploads) -> None:
        outcome = await send(client, spec, uploads)
        if outcome.status is not Status.OK:
            outcome = replace(outcome, retried=await self._again(client, spec, uploads))
        self.outcomes.append(outcome)

    async def _again(self, client: AsyncClient, spec: Spec, uploads: Uploads) -> bool:
        """Whether the request succeeds, to the token, when it is sent again."""
        until = time.monotonic() + RETRY_FOR
        while time.monotonic() < until:
            outcome = await send(client, spec, uploads)
            if outcome.status is Status.OK or not outcome.exact:
                return outcome.exact
            await asyncio.sleep(RETRY_EVERY)
        return False

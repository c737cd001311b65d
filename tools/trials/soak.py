"""`triptych soak`: many short requests through one deployment, every one checked, and whether any process has grown by the end.

Prompts repeat and differ, so that prefix caches fill, evict and hit. Of a model that sees, some are about pictures, which repeat and differ, too, and of which those that repeat are
uploaded once by each client. Besides memory, files and threads, what every instance holds must be nothing at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import NotFoundError, OverloadedError, TriptychError
from triptych.tools.reports import check_outputs
from triptych.tools.trials.deployment import Deployment
from triptych.tools.trials.flags import add_address_arguments, opened
from triptych.tools.trials.flags import add_arguments as add_trial_arguments
from triptych.tools.trials.media_load import MODEL, sees
from triptych.tools.trials.pictures import picture
from triptych.tools.trials.uploads import Uploads
from triptych.tools.trials.watch import Level, Watch, table

LIMIT = 60.0  # seconds for one request
KNOWN = 50  # prompts whose tokens must be the same each time; the others are new
NEW_SHARE = 0.5
MEDIA_SHARE = 0.4  # of the requests to a model that sees
REPORT_EVERY = 30.0  # seconds between lines of progress


@dataclass
class Tally:
    """What has happened so far."""

    completed: int = 0
    pictures: int = 0
    tokens: int = 0
    overloaded: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    known: dict[int, list[int]] = field(default_factory=dict)

    def feed(self, key: int | None, tokens: list[int]) -> None:
        """One request is done. `key`: of a prompt that is sent again and again; its tokens must always be those of the first time."""
        self.completed += 1
        self.tokens += len(tokens)
        if key is not None and self.known.setdefault(key, tokens) != tokens:
            self.failures["other tokens than the first time"] += 1


@dataclass(frozen=True)
class Outcome:
    """The whole trial."""

    tally: Tally
    seconds: float
    levels: list[Level]
    held: dict[str, dict[str, int]]

    @property
    def problems(self) -> list[str]:
        return [
            *(f"{count} requests: {reason}" for reason, count in self.tally.failures.items()),
            *(f"{x.process} {x.measure} grew by {x.growth:.1%}" for x in self.levels if x.grown),
            *(f"{owner} holds {what or 'nothing that it tells'}" for owner, what in self.held.items()),
        ]

    def report(self) -> str:
        tally = self.tally
        summary = (
            f"{tally.completed} requests ({tally.pictures} pictures), {tally.tokens} tokens in {self.seconds:.1f} s: {tally.completed / self.seconds:.1f} requests/s, "
            f"{tally.tokens / self.seconds:.0f} tokens/s; {tally.overloaded} times overloaded and sent again; {len(self.problems)} problems"
        )
        return "\n".join([table(self.levels), "", summary, *(f"  {problem}" for problem in self.problems)])


async def trial(deployment: Deployment, requests: int, concurrency: int, seed: int) -> Outcome:
    """Send so many requests, so many at a time."""
    tally, left = Tally(), iter(range(requests))
    watch = Watch(lambda: deployment.processes() | deployment.decoders(), interval=1.0)
    began = time.monotonic()
    async with deployment.client() as client:
        show = (await client.model_info()).media_placeholder
        tasks = [asyncio.create_task(watch.run()), asyncio.create_task(_tell(tally, requests, began))]
        try:
            await asyncio.gather(*(_work(client, tally, left, seed, show) for _ in range(concurrency)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    seconds = time.monotonic() - began
    return Outcome(tally, seconds, watch.levels(), await deployment.wait_idle())


async def _work(client: AsyncClient, tally: Tally, left: Iterator[int], seed: int, show: str) -> None:
    uploads = Uploads()
    for number in left:  # shared: each number is taken once
        rng = random.Random(f"{seed}/{number}")
        key = None if rng.random() < NEW_SHARE else rng.randrange(KNOWN)
        drawn = random.Random(f"{seed}/{number if key is None else ('known', key)}")
        images = (
            [picture(drawn.getrandbits(32)) for _ in range(drawn.choice([1, 1, 2]))]
            if show and drawn.random() < MEDIA_SHARE
            else []
        )
        asked: dict[str, Any] = {"token_ids": [drawn.randrange(200) for _ in range(drawn.randint(1, 60))]}
        if images:
            asked = {"prompt": show * len(images) + "say" * drawn.randint(1, 5)}
        asked |= {"max_tokens": drawn.randint(1, 8), "seed": drawn.getrandbits(32), "ignore_eos": True}
        while True:
            try:
                if images:
                    asked["images"] = images if key is None else [await uploads.given(client, data) for data in images]
                result = await client.complete(**asked, timeout=LIMIT)
            except OverloadedError as error:
                tally.overloaded += 1
                await asyncio.sleep(error.retry_after or 1.0)
                continue
            except NotFoundError:  # uploads make room for others
                uploads.forget()
                continue
            except TriptychError as error:
                tally.failures[f"{error.status.name}: {error.message}"[:200]] += 1
            else:
                tally.pictures += len(images)
                tally.feed(key, result.samples[0].token_ids)
            break


async def _tell(tally: Tally, requests: int, began: float) -> None:
    while True:
        await asyncio.sleep(REPORT_EVERY)
        rate = tally.completed / (time.monotonic() - began)
        print(f"{tally.completed}/{requests} requests, {rate:.1f}/s", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=50_000, help="how many (default 50000)")
    parser.add_argument("--concurrency", type=int, default=32, help="how many at a time (default 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all requests")
    parser.add_argument("--json", type=Path, help="write counts, levels and problems to this file")
    add_trial_arguments(parser, topology="1P1D")
    add_address_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_outputs(args.log, args.json)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with opened(args, *(MODEL if sees(args.topology) else ())) as deployment:
        outcome = await trial(deployment, args.requests, args.concurrency, args.seed)
    print(outcome.report())
    if args.json is not None:
        args.json.write_text(json.dumps(_as_data(outcome), indent=1) + "\n")
    return 1 if outcome.problems else 0


def _as_data(outcome: Outcome) -> dict[str, object]:
    tally = outcome.tally
    return {
        "completed": tally.completed,
        "pictures": tally.pictures,
        "tokens": tally.tokens,
        "overloaded": tally.overloaded,
        "seconds": outcome.seconds,
        "levels": [asdict(level) | {"growth": level.growth} for level in outcome.levels],
        "problems": outcome.problems,
    }

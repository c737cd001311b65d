"""One load from several processes: where tokens come faster than one process reads them, it would measure itself.

Items are dealt out in turn. Every process sends some that are not measured, says that it did, is told the moment at which the load begins (the monotonic clock is the machine's), and
sends how far it is and, at the end, its records.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench import runner
from triptych.tools.bench.client import LoadClient
from triptych.tools.bench.metrics import Record
from triptych.tools.bench.workload import Item

LEAD = 0.2  # seconds from the word to begin until it begins
TOLD_EVERY = 0.2  # seconds between two words on how far a process is

MakeClient = Callable[[], LoadClient]
"""Called in each process; has to be picklable."""


@dataclass
class _Share:
    """What one process does."""

    process: BaseProcess
    pipe: Connection
    done: int = 0
    records: list[Record] | None = None


def run(
    make: MakeClient, items: Sequence[Item], processes: int, progress: runner.Progress, warm_up: Sequence[Item] = ()
) -> list[Record]:
    """`runner.run` from so many processes, each after `runner.warm_up`; records in the order of `items`. Raises ConfigError if one of them ends before its share does."""
    context = multiprocessing.get_context("spawn")
    shares: list[_Share] = []
    try:
        for number in range(min(processes, len(items))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_child, args=(make, items[number::processes], warm_up, theirs), daemon=True
            )
            process.start()
            theirs.close()
            shares.append(_Share(process, ours))
        for share in shares:
            _heard(share)
        start = time.monotonic() + LEAD
        for share in shares:
            share.pipe.send(start)
        while running := [share for share in shares if share.records is None]:
            ready = wait([share.pipe for share in running])
            for share in (share for share in running if share.pipe in ready):
                word = _heard(share)
                if isinstance(word, int):
                    share.done = word
                else:
                    share.records, share.done = word, len(word)
            progress(sum(share.done for share in shares), len(items))
    finally:
        for share in shares:
            share.pipe.close()
            share.process.join(timeout=1.0)
            if share.process.is_alive():
                share.process.kill()
    dealt = [share.records or [] for share in shares]
    return [dealt[number % len(dealt)][number // len(dealt)] for number in range(len(items))]


def _heard(share: _Share) -> Any:
    try:
        return share.pipe.recv()
    except (EOFError, OSError) as error:
        share.process.join(timeout=1.0)
        raise ConfigError(
            f"a process of the load generator ended with status {share.process.exitcode} before its requests did"
        ) from error


def _child(make: MakeClient, items: Sequence[Item], warm_up: Sequence[Item], pipe: Connection) -> None:
    asyncio.run(_run_share(make, items, warm_up, pipe))


async def _run_share(make: MakeClient, items: Sequence[Item], warm_up: Sequence[Item], pipe: Connection) -> None:
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > TOLD_EVERY:
            last = now
            pipe.send(done)

    client = make()
    try:
        await runner.warm_up(client, warm_up)
        pipe.send(0)
        start = pipe.recv()
        records = await runner.run(client, items, tell, start=start)
        pipe.send(records)
    finally:
        await client.close()

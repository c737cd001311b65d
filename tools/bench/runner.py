"""Open-loop load: every item is sent when it is due, however slow the server is, so that queueing shows in the latencies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from triptych.runtime.core.errors import TriptychError
from triptych.tools.bench.client import LoadClient
from triptych.tools.bench.metrics import OK, Arrival, Record
from triptych.tools.bench.workload import Item

Progress = Callable[[int, int], None]


async def send(client: LoadClient, item: Item, scheduled: float, now: Callable[[], float] = time.monotonic) -> Record:
    """Send one item at once and record what happens. A request that fails is a Record with its status, never an exception."""
    arrivals: list[Arrival] = []
    prompt_tokens = len(item.prompt) if not isinstance(item.prompt, str) else 0
    status, reason = OK, ""
    sent = now()
    try:
        async for message in client.stream(item):
            if message.tokens:
                arrivals.append(Arrival(now(), message.tokens))
            if message.prompt_tokens is not None:
                prompt_tokens = message.prompt_tokens
    except TriptychError as error:
        status, reason = error.status.name, error.message
    if status == OK and not arrivals:
        status, reason = "EMPTY", "the stream ended well but held no token"
    return Record(scheduled, sent, now(), tuple(arrivals), prompt_tokens, status, reason)


async def warm_up(client: LoadClient, items: Sequence[Item]) -> None:
    """Send items one after the other and forget them, so that no first-use cost is measured. Raises what the first failing one met."""
    for item in items:
        async for _ in client.stream(item):
            pass


async def run(
    client: LoadClient, items: Sequence[Item], progress: Progress | None = None, start: float | None = None
) -> list[Record]:
    """Send all items at their times and wait for all answers; records in the order of `items`. `start`: of the monotonic clock; None: now."""
    start = time.monotonic() if start is None else start
    done = 0

    async def one(item: Item) -> Record:
        nonlocal done
        due = start + item.at
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        record = await send(client, item, due)
        done += 1
        if progress is not None:
            progress(done, len(items))
        return record

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item)) for item in items]
    return [task.result() for task in tasks]

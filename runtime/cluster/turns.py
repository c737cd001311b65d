"""Many calls to a server of one's own: a bounded number at a time, and what it has no room for now waits for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from triptych.runtime.core.errors import Status, TriptychError

T = TypeVar("T")


async def in_turns(calls: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
    """The results of all calls, in order. Raises the first failure.

    A call that is refused for lack of room, with a hint when to retry, is made again after that time. The others give room when they end;
    where there are none the refusal is an answer.
    """
    places, running = asyncio.Semaphore(at_once), 0

    async def patiently(call: Callable[[], Awaitable[T]]) -> T:
        nonlocal running
        while True:
            async with places:
                running += 1
                try:
                    return await call()
                except TriptychError as error:
                    if error.status is not Status.RESOURCE_EXHAUSTED or error.retry_after is None or running == 1:
                        raise
                    wait = error.retry_after
                finally:
                    running -= 1
            await asyncio.sleep(wait)

    return list(await asyncio.gather(*(patiently(call) for call in calls)))

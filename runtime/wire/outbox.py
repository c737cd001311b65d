"""The sending half of a long-lived stream: messages wait in a bounded outbox, one writer empties it.

A peer that reads too slowly must not grow this process, and must not silently miss a message either: a full outbox closes itself, which ends
the stream, which both sides handle as the loss it is. Owned by one asyncio loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from triptych.runtime.core.errors import OverloadedError, TriptychError

M = TypeVar("M")
T = TypeVar("T")


class Outbox(Generic[M]):
    """Messages for one peer, in order. `peer` names it in errors; `limit` bounds what may wait."""

    def __init__(self, peer: str, limit: int):
        self._peer = peer
        self._limit = limit
        self._messages: deque[M] = deque()
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()
        self._error: TriptychError | None = None

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def error(self) -> TriptychError | None:
        """Why it was closed; None if it is open or was closed in good order."""
        return self._error

    def put(self, message: M) -> None:
        """Send when the peer reads. After closing, messages are dropped: the end of the stream tells the peer more than they could."""
        if self.closed:
            return
        if len(self._messages) >= self._limit:
            self.close(OverloadedError(f"{self._peer} reads too slowly: {self._limit} messages were waiting for it"))
            return
        self._messages.append(message)
        self._wake.set()

    def close(self, error: TriptychError | None = None) -> None:
        """End the stream, with `error` as its status. The first close decides."""
        if not self.closed:
            self._error = error
            self._messages.clear()
            self._closed.set()

    async def drain(self, write: Callable[[M], Awaitable[object]]) -> None:
        """Write messages as they come; runs until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._messages:
                await write(self._messages.popleft())

    async def converse(self, write: Callable[[M], Awaitable[object]], listen: Awaitable[T]) -> T | None:
        """Write what is put here while `listen` runs; returns its result, or None if the outbox was closed in good order before.

        Raises what closed the outbox, or what `listen` or writing raised. A writer that is stuck on a peer that does not read is abandoned.
        """
        closing = asyncio.ensure_future(self._closed.wait())
        writing = asyncio.ensure_future(self.drain(write))
        listening = asyncio.ensure_future(listen)
        tasks = (listening, writing, closing)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error
        if listening in done:  # before the writer: on a broken stream the reading side knows why
            return listening.result()
        if writing in done:
            writing.result()
        return None

"""The media of requests, from the bytes that clients send to pieces: looked up or processed, and held until the request has ended.

    check      size and number, and the kind by the first bytes                   at once
    identify   a hash of the bytes and of how they are processed                  on a thread
    look up    processed before, or being processed for another request           keep.py
    process    decoded and cut into pieces in the processor's own processes       the Processor

Every failure names the part of the request that it is about. Of one request a few media are processed at a time and the others wait in line for as
long as it has time: what is refused for lack of room is refused for what all requests bring together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from triptych.runtime.core.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    TriptychError,
)
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.asking import Asked, at_field
from triptych.runtime.gateway.media.keep import PixelKeep
from triptych.runtime.gateway.media.pieces import Medium, Piece

Pieces = tuple[Piece, ...]

AT_ONCE = 8  # media of one request that are processed, or wait for a process, at a time: enough to keep the processes of a host busy


class Processor(Protocol):
    """Decodes and processes. Methods raise typed errors."""

    def start(self) -> None:
        """Get ready; what comes before it is ready waits."""
        ...

    def kind(self, data: bytes, declared: str) -> MediaKind:
        """What the bytes are; cheap. Raises if they are nothing that the model takes, too many, or not what is `declared`."""
        ...

    def check_total(self, sizes: Sequence[int]) -> None:
        """Raises if a request brings too many media, of these sizes in bytes, or too large ones together."""
        ...

    def identity(self, data: bytes) -> str:
        """Hexadecimal digest of the bytes and of all that decides what becomes of them. Takes time in their number; from any thread."""
        ...

    async def process(self, data: bytes, kind: MediaKind, identity: str) -> Pieces: ...

    async def close(self) -> None: ...


class Uploads(Protocol):
    """Where uploaded media are."""

    def get(self, handle: str, owner: str) -> bytes:
        """Raises NotFoundError."""
        ...


class Holding:
    """The media of one request, in the order of its prompt."""

    def __init__(self) -> None:
        self.media: tuple[Medium, ...] = ()
        self.identities: list[str] = []
        self.sent_bytes = 0

    @property
    def pieces(self) -> Pieces:
        """Of all media: piece i is item i of the request."""
        return tuple(piece for medium in self.media for piece in medium.pieces)


class _Job:
    """A medium that is being processed, for `waiters` requests."""

    def __init__(self, task: asyncio.Task[Pieces]):
        self.task = task
        self.waiters = 0


class MediaDesk:
    """From the event loop only."""

    def __init__(
        self, processor: Processor, keep: PixelKeep, uploads: Uploads | None = None, max_sent_bytes: int = 2**30
    ):
        """`max_sent_bytes`: files in the messages of all open requests, which are held until these have ended."""
        self._max_sent_bytes = max_sent_bytes
        self.sent_bytes = 0
        self._processor = processor
        self._uploads = uploads
        self.keep = keep
        self._jobs: dict[str, _Job] = {}

    def start(self) -> None:
        """On the event loop, before the first request."""
        self._processor.start()

    async def close(self) -> None:
        await self._processor.close()

    @contextmanager
    def holding(self) -> Iterator[Holding]:
        """A place for the media of one request; what is in it is given back when the context is left."""
        holding = Holding()
        try:
            yield holding
        finally:
            self.sent_bytes -= holding.sent_bytes
            for identity in holding.identities:
                self.keep.release(identity)

    async def fill(self, holding: Holding, asked: Sequence[Asked], owner: str, timeout: float) -> None:
        """Process what a request asks for. Raises typed errors that begin with the field, DeadlineError after `timeout` seconds.

        Args:
            owner: whose uploads its handles mean.
        """
        self._admit(holding, sum(len(one.data) for one in asked))
        found = [self._found(one, owner) for one in asked]
        self._processor.check_total([len(data) for data, _ in found])
        line = asyncio.Semaphore(AT_ONCE)
        tasks = [
            asyncio.create_task(self._one(holding, one.field, data, kind, line))
            for one, (data, kind) in zip(asked, found, strict=True)
        ]
        try:
            async with asyncio.timeout(timeout):
                holding.media = tuple(await asyncio.gather(*tasks))
        except TimeoutError:
            raise DeadlineError("the deadline passed while the request's media were being processed") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _admit(self, holding: Holding, size: int) -> None:
        if size and self.sent_bytes + size > self._max_sent_bytes:
            raise OverloadedError(
                f"open requests brought {self.sent_bytes} of {self._max_sent_bytes} bytes of media, and {size} more do not fit; retry later",
                retry_after=self.keep.retry_after,
            )
        holding.sent_bytes = size
        self.sent_bytes += size

    def _found(self, asked: Asked, owner: str) -> tuple[bytes, MediaKind]:
        """The bytes of a medium, and what they are."""
        try:
            data = asked.data
            if asked.handle:
                if self._uploads is None:
                    raise NotFoundError("this server keeps no uploads")
                data = self._uploads.get(asked.handle, owner)
            return data, self._processor.kind(data, asked.declared)
        except TriptychError as error:
            raise at_field(asked.field, error) from error

    async def _one(self, holding: Holding, field: str, data: bytes, kind: MediaKind, line: asyncio.Semaphore) -> Medium:
        try:
            async with line:
                identity = await asyncio.to_thread(self._processor.identity, data)
                pieces = self.keep.hold(identity)
                if pieces is None:
                    self.keep.check_room()
                    pieces = self.keep.put(identity, await self._processed(identity, data, kind))
                holding.identities.append(identity)
        except TriptychError as error:
            raise at_field(field, error) from error
        if not pieces:
            raise InvalidRequestError(f"{field}: it gives the model nothing to see; expected a larger one")
        return Medium(field, kind, pieces)

    async def _processed(self, identity: str, data: bytes, kind: MediaKind) -> Pieces:
        """Processed once for all that wait for it; given up when nobody waits any more."""
        job = self._jobs.get(identity)
        if job is None:
            task = asyncio.create_task(self._processor.process(data, kind, identity))
            job = self._jobs[identity] = _Job(task)
            task.add_done_callback(lambda _: self._forget(identity, job))
        job.waiters += 1
        try:
            return await asyncio.shield(job.task)
        finally:
            job.waiters -= 1
            if not job.waiters and not job.task.done():
                self._forget(identity, job)  # at once: who comes next must not wait for what is being cancelled
                job.task.cancel()

    def _forget(self, identity: str, job: _Job) -> None:
        if self._jobs.get(identity) is job:
            del self._jobs[identity]
        if job.task.done() and not job.task.cancelled():
            job.task.exception()  # looked at, so that a failure which nobody waits for any more is not reported as lost

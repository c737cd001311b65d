"""Media that clients upload once and use in many requests, by handle.

A handle is good for whoever uploaded it: the same bearer token, or, where none is asked for, the same address.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import grpc

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import DeadlineError, InvalidRequestError, OverloadedError, Status, TriptychError
from triptych.runtime.gateway.media.desk import Processor
from triptych.runtime.gateway.media.reading import read
from triptych.runtime.media.limits import MediaLimits, check_item
from triptych.runtime.media.store import MediaStore, StoreConfig
from triptych.runtime.media.store import owner_of as store_owner
from triptych.runtime.wire.auth import client_of

MAX_COMING = 16  # uploads at once: each may hold as much memory as one item
MAX_OWN = 4  # of one client: it cannot keep out all others
TAKES_AT_MOST = 120.0  # seconds; a client that sends more slowly makes room for others


class UnsupportedMediaError(TriptychError):
    """The served model takes no media."""

    status = Status.UNIMPLEMENTED


def owner_of(context: grpc.aio.ServicerContext) -> str:
    """Whose uploads a call may use. A digest: nobody needs the token itself in memory."""
    return store_owner(client_of(context))


class UploadShelf:
    """The uploads at one gateway."""

    def __init__(self, processor: Processor, limits: MediaLimits, config: StoreConfig, clock: Clock):
        self._processor = processor
        self._limits = limits
        self._ttl = config.ttl
        self._clock = clock
        self.store = MediaStore(config)
        self._coming: Counter[str] = Counter()  # by owner

    async def take(self, messages: AsyncIterator[pb.UploadMediaRequest], owner: str) -> pb.UploadMediaResponse:
        """Store what a stream brings. Raises InvalidRequestError, OverloadedError, DeadlineError, and what the store and the limits raise."""
        for coming, most, whose in (
            (self._coming.total(), MAX_COMING, ""),
            (self._coming[owner], MAX_OWN, " from this client"),
        ):
            if coming >= most:
                raise OverloadedError(
                    f"{coming} uploads are coming in{whose}, which is the most; retry later", retry_after=1.0
                )
        self._coming[owner] += 1
        try:
            async with asyncio.timeout(TAKES_AT_MOST):
                return await self._take(messages, owner)
        except TimeoutError:
            raise DeadlineError(f"the upload did not arrive within {TAKES_AT_MOST:g} s") from None
        finally:
            self._coming[owner] -= 1
            if not self._coming[owner]:
                del self._coming[owner]

    async def _take(self, messages: AsyncIterator[pb.UploadMediaRequest], owner: str) -> pb.UploadMediaResponse:
        first = await anext(messages, None)
        if first is None or first.WhichOneof("kind") != "header":
            raise InvalidRequestError("the first message is no header; expected one, and then data")
        data = bytearray()
        self._check_size(first.header.size, first.header.size)
        async for message in messages:
            if message.WhichOneof("kind") != "data":
                raise InvalidRequestError("a message after the first one has no data")
            data += message.data
            self._check_size(len(data), first.header.size)
        if first.header.size and len(data) != first.header.size:
            raise InvalidRequestError(f"data: {len(data)} bytes came; the header says {first.header.size}")
        content = bytes(data)
        self._processor.kind(content, first.header.type)  # whether the model takes it
        item = read(content, first.header.type, self._limits)
        handle = self.store.put(item, owner, self._clock.now())
        return pb.UploadMediaResponse(handle=handle, type=item.type.value, size=len(content), expires_in=self._ttl)

    def get(self, handle: str, owner: str) -> bytes:
        """The bytes; their time begins anew. Raises NotFoundError."""
        return self.store.get(handle, owner, self._clock.now()).data

    def delete(self, handle: str, owner: str) -> None:
        """Raises NotFoundError."""
        self.store.delete(handle, owner, self._clock.now())

    def _check_size(self, size: int, promised: int) -> None:
        if size:
            check_item(size, self._limits, "data")
        if promised and size > promised:
            raise InvalidRequestError(f"data: more than the {promised} bytes came that the header says")

"""Where pixels come in: the receiving end of Worker.PutMedia for one instance.

    header -> checked -> device loop: does the core lack it? -> is it what its task wants? -> pieces -> size and checksum -> device loop: on the shelf, and the core hears of it

Of several who bring the same item at once the first one is asked for the bytes, and the others wait: if it fails, the next one is asked. A
call that ends early, for whatever reason, leaves nothing behind. Lives on the worker's event loop.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from math import prod

import numpy as np

from triptych.proto.v1 import worker_pb2
from triptych.runtime.core.errors import (
    ChecksumError,
    InvalidRequestError,
    OverloadedError,
    StaleEpochError,
    TransferError,
)
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.media import MediaItem
from triptych.runtime.engine.encoder import MediaEncoder
from triptych.runtime.engine.shelf import MediaShelf, Pixels

IDLE = 20.0  # seconds between two messages; a gateway that is slower than that blocks the others who have the item
LASTS = 60.0  # seconds for all messages of an item; gateways give up after half of that
MAX_HASH = 128  # characters; SHA-512 in hexadecimal
MAX_COUNTS = 256  # grids whose embeddings are known without counting again

Store = Callable[[InstanceRef, str, Pixels, Callable[[bool], object]], None]
"""Takes over an item and its room on the shelf; calls back on the event loop whether the incarnation still lived, and it was put there."""


Lacking = Callable[[InstanceRef, str], Awaitable[MediaItem | None]]
"""Asks the core whether this incarnation lacks an item that it needs, and what it takes it for. Raises StaleEpochError if it has ended."""


Crowded = Callable[[InstanceRef, str], Awaitable[bool]]
"""Tells the core that the shelf has no room for an item, and asks whether it shall come all the same."""


class MediaDoor:
    """For the encoder of one instance.

    Args:
        encoder: says which shapes it takes.
        shelf: has the room.
        max_slots: the largest item (`MediaEncoder.slots`).
        ref: the instance as it is now.
    """

    def __init__(
        self,
        encoder: MediaEncoder,
        shelf: MediaShelf,
        max_slots: int,
        ref: Callable[[], InstanceRef],
        lacking: Lacking,
        store: Store,
        crowded: Crowded,
    ):
        self._encoder, self._shelf, self._max_slots = encoder, shelf, max_slots
        self._ref, self._lacking, self._store, self._crowded = ref, lacking, store, crowded
        self._coming: dict[str, asyncio.Event] = {}
        self._counts: dict[tuple[int, int, int], int] = {}

    async def receive(
        self, header: worker_pb2.MediaHeader, messages: AsyncIterator[worker_pb2.PutMediaRequest]
    ) -> AsyncGenerator[worker_pb2.PutMediaReply, None]:
        """The answers to one call, of which the header was read.

        Raises:
            StaleEpochError: the incarnation that needed it is gone.
            InvalidRequestError: the encoder does not take this, the task that needs it is of another item, or other bytes came than
                the header says.
            OverloadedError: no room now.
            ChecksumError: the bytes are damaged.
        """
        owner = InstanceRef(header.owner.id, header.owner.epoch)
        shape, grid = self._checked(header)
        self._check_lives(owner)
        while (coming := self._coming.get(header.hash)) is not None:
            await coming.wait()
        ours = self._coming[header.hash] = asyncio.Event()
        try:
            wanted = await self._lacking(owner, header.hash)
            if wanted is None:
                yield worker_pb2.PutMediaReply(wanted=False)
                return
            await self._check_same(wanted, shape, grid)
            async with aclosing(self._brought(owner, header, shape, grid, messages)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            del self._coming[header.hash]
            ours.set()

    async def _brought(
        self,
        owner: InstanceRef,
        header: worker_pb2.MediaHeader,
        shape: tuple[int, ...],
        grid: tuple[int, int, int],
        messages: AsyncIterator[worker_pb2.PutMediaRequest],
    ) -> AsyncGenerator[worker_pb2.PutMediaReply, None]:
        """Asks for the bytes of an item and hands them over."""
        size, handed_over = prod(shape) * self._encoder.pixel_dtype.itemsize, False
        await self._reserve(owner, header.hash, size)
        try:
            yield worker_pb2.PutMediaReply(wanted=True)
            data = await _all_pieces(messages, size, header.checksum)
            pixels = Pixels(np.frombuffer(data, self._encoder.pixel_dtype).reshape(shape), grid)
            answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            handed_over = True
            self._store(owner, header.hash, pixels, lambda lived: answer.done() or answer.set_result(lived))
            if not await answer:
                raise StaleEpochError(f"epoch {owner.epoch} of {owner.id} ended while the item came")
            yield worker_pb2.PutMediaReply(wanted=True, stored=True)
        finally:
            if not handed_over:
                self._shelf.release(size)

    async def _reserve(self, owner: InstanceRef, name: str, size: int) -> None:
        """Room on the shelf. An item that has pages already goes beyond its limit: it is encoded at once, and were it refused, the pixels that
        fill the shelf might be waiting for those very pages. Raises OverloadedError for others."""
        try:
            self._shelf.reserve(size)
        except OverloadedError:
            if not await self._crowded(owner, name):
                raise
            self._shelf.reserve(size, beyond=True)

    def _checked(self, header: worker_pb2.MediaHeader) -> tuple[tuple[int, ...], tuple[int, int, int]]:
        """(shape, grid), if the encoder takes them."""
        if not 0 < len(header.hash) <= MAX_HASH:
            raise InvalidRequestError(f"an item needs a hash of 1 to {MAX_HASH} characters, got {len(header.hash)}")
        if len(header.grid) != 3:
            raise InvalidRequestError(f"a grid has time, rows and columns; got {list(header.grid)}")
        steps, rows, columns = header.grid
        grid = (steps, rows, columns)
        try:
            expected = self._encoder.patch_shape(grid)
        except ValueError as error:
            raise InvalidRequestError(f"item {header.hash}: {error}") from error
        if self._encoder.slots(grid) > self._max_slots:
            raise InvalidRequestError(
                f"item {header.hash} takes {self._encoder.slots(grid)} slots of the encoder, which has {self._max_slots}"
            )
        if tuple(header.shape) != expected:
            raise InvalidRequestError(
                f"item {header.hash} with grid {list(grid)} must have shape {list(expected)}, got {list(header.shape)}"
            )
        return expected, grid

    async def _check_same(self, wanted: MediaItem, shape: tuple[int, ...], grid: tuple[int, int, int]) -> None:
        """Whether an item of this shape gives what the task that needs it has planned with: anything else would fail on the device, and take
        down whatever is computed beside it. Raises InvalidRequestError."""
        slots = self._encoder.slots(grid)
        counted = self._counts.get(grid)
        if counted is None:
            try:
                counted = await asyncio.to_thread(self._count, shape, grid, slots)
            except ValueError as error:
                raise InvalidRequestError(f"item {wanted.hash}: {error}") from error
            self._counts[grid] = counted
            if len(self._counts) > MAX_COUNTS:
                del self._counts[next(iter(self._counts))]
        if (slots, counted) != (wanted.patches, wanted.tokens):
            raise InvalidRequestError(
                f"item {wanted.hash} with grid {list(grid)} takes {slots} slots and gives {counted} embeddings; the request that needs it has "
                f"{wanted.patches} and {wanted.tokens}"
            )

    def _count(self, shape: tuple[int, ...], grid: tuple[int, int, int], slots: int) -> int:
        """Embeddings of an item of this shape, as the encoder itself counts them when it packs one."""
        blank = np.broadcast_to(np.zeros((), self._encoder.pixel_dtype), shape)
        _, (count,) = self._encoder.pack([Pixels(blank, grid)], slots)
        return count

    def _check_lives(self, owner: InstanceRef) -> None:
        if owner != self._ref():
            raise StaleEpochError(f"{owner.id} is at epoch {self._ref().epoch}; epoch {owner.epoch} is gone")


async def _all_pieces(messages: AsyncIterator[worker_pb2.PutMediaRequest], size: int, checksum: int) -> bytearray:
    """`size` bytes. Raises InvalidRequestError for more or fewer, ChecksumError for others, TransferError for a silent client."""
    data, at, crc = bytearray(size), 0, 0
    until = asyncio.get_running_loop().time() + LASTS
    try:
        while True:
            left = until - asyncio.get_running_loop().time()
            async with asyncio.timeout(min(IDLE, left)):
                message = await anext(messages, None)
            if message is None:
                break
            if message.WhichOneof("kind") != "data":
                raise InvalidRequestError("after the header of an item come its pieces")
            piece = message.data
            if at + len(piece) > size:
                raise InvalidRequestError(f"the item has {size} bytes by its header, and more came")
            data[at : at + len(piece)] = piece
            crc, at = zlib.crc32(piece, crc), at + len(piece)
            if at == size:
                break
    except TimeoutError:
        raise TransferError(
            f"no piece of the item came for {IDLE:g} s, or not all within {LASTS:g} s; {at} of {size} bytes are here"
        ) from None
    if at < size:
        raise InvalidRequestError(f"the stream ended after {at} of the item's {size} bytes")
    if crc != checksum:
        raise ChecksumError(f"the item's bytes have checksum {crc:#010x}, its header says {checksum:#010x}")
    return data

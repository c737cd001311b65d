"""Transport "grpc": bytes over the channel that carries the protocol. Slowest, always works, encrypted when the channel is.

The producer half keeps the chunks; the Transfer service reads them with `read` and streams them in pieces.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import grpc
import jax
import numpy as np

from triptych.proto.v1 import common_pb2, transfer_pb2, transfer_pb2_grpc
from triptych.runtime.core.errors import NotFoundError, Status, TransferError, TransferTimeoutError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.transports.base import OfferSpec, Peer
from triptych.runtime.wire.status import typed_error
from triptych.sharding.devices import Device

PIECE_BYTES = 1 << 20
"""Bytes of a message: well under gRPC's default limit of 4 MiB, large enough that per-message work does not count."""

Channels = Callable[[str], grpc.aio.Channel]
"""The process's channel to an address, with its credentials; kept open and shared."""


class GrpcTransport:
    """Both halves. `channels` opens (or returns) the channel to a peer's address."""

    kind = TransportKind.GRPC

    def __init__(self, channels: Channels, threads: Executor):
        self._channels = channels
        self._threads = threads
        self._lock = threading.Lock()
        self._published: dict[int, tuple[jax.Array, ...]] = {}

    def endpoint(self) -> str:
        return ""

    def publish(self, offer_id: int, chunks: Sequence[jax.Array]) -> None:
        with self._lock:
            self._published[offer_id] = tuple(chunks)
        for chunk in chunks:
            chunk.copy_to_host_async()

    def withdraw(self, offer_id: int) -> None:
        with self._lock:
            self._published.pop(offer_id, None)

    def read(self, offer_id: int, chunk: int) -> np.ndarray:
        """The bytes (uint8) of one chunk; waits for the device, so not for the event loop. NotFoundError when it is not published."""
        with self._lock:
            chunks = self._published.get(offer_id, ())
        if chunk >= len(chunks):
            raise NotFoundError(f"offer {offer_id:#x} has no chunk {chunk} here: withdrawn, or never published")
        return np.ascontiguousarray(np.asarray(chunks[chunk])).reshape(-1).view(np.uint8)

    async def fetch(
        self, peer: Peer, spec: OfferSpec, devices: Sequence[Device], timeout: float
    ) -> tuple[jax.Array, ...]:
        stub: Any = transfer_pb2_grpc.TransferStub(self._channels(peer.address))  # type: ignore[no-untyped-call]
        request = transfer_pb2.FetchRequest(
            owner=common_pb2.InstanceRef(id=peer.owner.id, epoch=peer.owner.epoch),
            key=peer.key,
            offer=spec.id,
            chunks=range(spec.chunks),
        )
        buffers = _Assembly(spec)
        call = stub.Fetch(request, timeout=timeout)
        try:
            async for piece in call:
                buffers.add(piece)
        except grpc.aio.AioRpcError as error:
            failure = typed_error(error)
            if failure.status is Status.DEADLINE_EXCEEDED:
                raise TransferTimeoutError(
                    f"offer {spec.id:#x} of {peer.owner.id} did not arrive within {timeout:.3f} s"
                ) from error
            raise failure from error
        finally:
            call.cancel()
        return await self._place(buffers.finished(), devices)

    async def _place(self, arrays: Sequence[np.ndarray], devices: Sequence[Device]) -> tuple[jax.Array, ...]:
        def place() -> tuple[jax.Array, ...]:
            return jax.block_until_ready(tuple(jax.device_put(a, d) for a, d in zip(arrays, devices, strict=True)))

        return await asyncio.get_running_loop().run_in_executor(self._threads, place)

    def close(self) -> None:
        with self._lock:
            self._published.clear()


def pieces(chunk: int, data: np.ndarray) -> Iterator[transfer_pb2.FetchPiece]:
    """The messages that carry one chunk's bytes."""
    view = data.data  # a memoryview: slices without copies
    for sequence, start in enumerate(range(0, len(view), PIECE_BYTES)):
        yield transfer_pb2.FetchPiece(
            chunk=chunk, sequence=sequence, total=len(view), data=bytes(view[start : start + PIECE_BYTES])
        )


class _Assembly:
    """Chunks on the way in. A piece that is missing, repeated or of another size is an error, never a gap."""

    def __init__(self, spec: OfferSpec):
        self._spec = spec
        self._size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        self._data = [np.empty(self._size, np.uint8) for _ in range(spec.chunks)]
        self._filled = [0] * spec.chunks

    def add(self, piece: transfer_pb2.FetchPiece) -> None:
        if piece.chunk >= len(self._data) or piece.total != self._size:
            raise TransferError(
                f"offer {self._spec.id:#x}: chunk {piece.chunk} of {piece.total} bytes, expected {self._size} bytes"
            )
        start = self._filled[piece.chunk]
        end = start + len(piece.data)
        if piece.sequence * PIECE_BYTES != start or end > self._size:
            raise TransferError(
                f"offer {self._spec.id:#x}: piece {piece.sequence} of chunk {piece.chunk} came after {start} bytes"
            )
        self._data[piece.chunk][start:end] = np.frombuffer(piece.data, np.uint8)
        self._filled[piece.chunk] = end

    def finished(self) -> list[np.ndarray]:
        short = [i for i, filled in enumerate(self._filled) if filled != self._size]
        if short:
            raise TransferError(f"offer {self._spec.id:#x}: the stream ended before chunks {short} were complete")
        dtype = np.dtype(self._spec.dtype)
        return [data.view(dtype).reshape(self._spec.shape) for data in self._data]

"""The Transfer gRPC service of a worker process: the producers of all its instances behind one servicer.

Served through `wire.handlers.service_handler`, which makes statuses of what is raised here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

import grpc

from triptych.proto.v1 import common_pb2, transfer_pb2
from triptych.runtime.core.errors import IncompatibleError, NotFoundError, StaleEpochError, Status
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.header import KvHeader
from triptych.runtime.transfer.producer import TransferProducer
from triptych.runtime.transfer.transports.grpc import GrpcTransport, pieces
from triptych.runtime.wire.convert import decode


class TransferServicer:
    """Serves `producers`, which are told apart by their instance ids, and those of one instance (KV and embeddings) by what they hold.

    Args:
        bytes_of: the transport whose chunks `Fetch` reads; None where "grpc" is not served.
    """

    def __init__(self, producers: Iterable[TransferProducer], bytes_of: GrpcTransport | None, threads: Executor):
        self._producers: dict[str, list[TransferProducer]] = {}
        for producer in producers:
            self._producers.setdefault(producer.ref.id, []).append(producer)
        self._bytes_of = bytes_of
        self._threads = threads

    def forget(self, instance: str) -> None:
        """The instance is gone: its handles are refused from now on."""
        del self._producers[instance]

    async def Open(
        self, request: transfer_pb2.OpenRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[transfer_pb2.TransferEvent]:
        header = decode(request.header, KvHeader, 0.0)
        if header.digest() != request.digest:
            raise IncompatibleError("the puller's header arrived otherwise than it was sent; it runs another version")
        try:
            events = self._owner(request.owner, request.key).open(
                request.key,
                request.owner.epoch,
                header,
                request.head_unit,
                _kind(request.transport),
                request.first_page,
            )
        except StaleEpochError as error:  # no disagreement: what was staged has ended with its epoch
            closed = transfer_pb2.Closed(status=int(Status.UNAVAILABLE), reason=error.message)
            yield transfer_pb2.TransferEvent(closed=closed)
            return
        async with aclosing(events):
            async for event in events:
                yield event

    async def Fetch(
        self, request: transfer_pb2.FetchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[transfer_pb2.FetchPiece]:
        self._owner(request.owner, request.key).check_offer(request.key, request.owner.epoch, request.offer)
        if self._bytes_of is None:
            raise IncompatibleError(f"{request.owner.id} does not serve transport {TransportKind.GRPC}")
        for chunk in request.chunks:
            data = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._bytes_of.read, request.offer, chunk
            )
            for piece in pieces(chunk, data):
                yield piece

    async def Release(
        self, request: transfer_pb2.ReleaseRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> transfer_pb2.ReleaseReply:
        outcome = (_status(request.outcome.status), request.outcome.reason) if request.HasField("outcome") else None
        self._owner(request.owner, request.key).release(
            request.key, request.owner.epoch, tuple(request.offers), outcome
        )
        return transfer_pb2.ReleaseReply()

    async def Extend(
        self, request: transfer_pb2.ExtendRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> transfer_pb2.ExtendReply:
        for producer in self._producers.get(request.owner.id, ()):
            producer.extend(request.keys, request.owner.epoch)
        return transfer_pb2.ExtendReply()

    def _owner(self, ref: common_pb2.InstanceRef, key: int) -> TransferProducer:
        """The producer that holds or held `key`; any of the instance's, which says why not, if none did."""
        producers = self._producers.get(ref.id)
        if not producers:
            raise NotFoundError(
                f"no instance {ref.id!r} in this process; it holds {', '.join(sorted(self._producers)) or 'none'}"
            )
        return next((producer for producer in producers if producer.knows(key)), producers[0])


def _kind(text: str) -> TransportKind:
    try:
        return TransportKind(text)
    except ValueError:
        raise IncompatibleError(f"unknown transport {text!r}; known: {', '.join(TransportKind)}") from None


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        return Status.INTERNAL

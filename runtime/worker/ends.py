"""Both ends of the transfers of one pool: what is staged here for pullers, and what is pulled from other instances.

An instance has one of these for its KV and one for its embeddings, as far as it has such pools. Everything that touches the pool is done on
the device loop; what comes of pulls is told to the core as events.
"""

from __future__ import annotations

import logging
from typing import Protocol

from triptych.models.structure import Pools
from triptych.proto.v1 import common_pb2
from triptych.runtime.core.errors import EngineError, Status, TriptychError
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, TransportKind
from triptych.runtime.core.request import Continuation
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    CompleteStaging,
    Imported,
    ImportFailed,
    KeepStaged,
    LeaseExtended,
    MediaImported,
    OpenStaging,
    StagedReleased,
    StartPull,
)
from triptych.runtime.instance.plan import Export, Pool
from triptych.runtime.transfer.consumer import PullLimits, PullStats, TransferConsumer
from triptych.runtime.transfer.delivery import Delivery
from triptych.runtime.transfer.producer import TransferProducer, serve_gather
from triptych.runtime.wire.convert import decode, encode, parse
from triptych.runtime.worker.build import PoolParts
from triptych.runtime.worker.device_loop import DeviceLoop
from triptych.runtime.worker.surroundings import Surroundings

log = logging.getLogger(__name__)


class PoolOwner(Protocol):
    """What has the pool's arrays: an engine, or its media stage."""

    pools: Pools


class FailingEngine(Protocol):
    """Part of an engine."""

    def fail(self, error: Exception) -> EngineError: ...


class PoolEnds:
    """Producer and consumer of one pool. The first group of methods is called on the device loop, the second from any thread."""

    def __init__(
        self,
        kind: Pool,
        parts: PoolParts,
        owner: PoolOwner,
        engine: FailingEngine,
        info: InstanceInfo,
        loop: DeviceLoop,
        around: Surroundings,
    ):
        self._kind, self._parts, self._owner, self._engine = kind, parts, owner, engine
        self._address, self._loop, self._around = info.address, loop, around
        self.pulls_failed = 0
        self.pull_seconds = self.exposed_seconds = 0.0  # of pulls that are done; see `PullStats`
        self.producer = TransferProducer(
            info.ref,
            parts.header,
            parts.mover.layout.head_unit,
            around.transports,
            self,
            threads=around.threads,
            loop=around.loop,
        )
        self.consumer = TransferConsumer(
            parts.header,
            parts.mover,
            around.transports,
            around.channels,
            self,
            clock=around.clock,
            threads=around.threads,
            loop=around.loop,
            limits=PullLimits(),
        )

    async def close(self) -> None:
        """Ends every pull."""
        self.consumer.cancel_all()
        await self.consumer.close()

    # ---- what the core says ---------------------------------------------------------------------------------------------------------

    def on_message(
        self, message: OpenStaging | CompleteStaging | CloseStaging | StartPull | CancelPull | KeepStaged
    ) -> None:
        match message:
            case OpenStaging():
                self.producer.open_staging(message)
            case CompleteStaging():
                self.producer.complete(message.key, self._final(message.continuation))
            case CloseStaging():
                self.producer.close(message.key, message.status, message.reason)
            case StartPull():
                self._start_pull(message)
            case CancelPull():
                self.consumer.cancel(message.request, message.key)
            case KeepStaged():
                self.consumer.keep(message)

    def on_export(self, export: Export, layer_group: int | None = None) -> None:
        self.producer.export(export.key, export.first_page, export.pages, layer_group)

    def restart(self, ref: InstanceRef) -> None:
        """The instance goes on as `ref`, without what was staged."""
        self.producer.restart(ref)

    def _final(self, continuation: Continuation | None) -> bytes:
        """The final record: embeddings have none."""
        if continuation is None:
            return b""
        return encode(continuation, common_pb2.Continuation, self._around.clock.now()).SerializeToString()

    def _start_pull(self, message: StartPull) -> None:
        try:
            self.consumer.start(message, self._transport_to(message.source_address))
        except TriptychError as error:
            self._loop.post(self._failure(message, error.status, error.message))

    def _transport_to(self, address: str) -> TransportKind:
        """`local` inside this process, otherwise the first that crosses processes. The peer refuses what it does not serve."""
        kinds = list(self._around.transports)
        if address == self._address:
            return kinds[0]
        return next((kind for kind in kinds if kind is not TransportKind.LOCAL), TransportKind.LOCAL)

    # ---- ProducerEvents and ConsumerEvents: from any thread -------------------------------------------------------------------------

    def request_gather(self, key: int) -> None:
        self._loop.call(lambda: serve_gather(self.producer, self._parts.mover, self._owner.pools, key))

    def alive(self, key: int) -> None:
        self._loop.post(LeaseExtended(key))

    def awaited(self, key: int) -> None:
        self._loop.post(LeaseExtended(key, waiting=True))

    def released(self, key: int) -> None:
        self._loop.post(StagedReleased(key))

    def deliver(self, delivery: Delivery) -> None:
        def scatter() -> None:
            try:
                self._owner.pools = delivery.scatter(self._parts.mover, self._owner.pools)
            except EngineError as error:
                raise self._engine.fail(error) from error

        self._loop.call(scatter)

    def done(self, pull: StartPull, final: bytes, stats: PullStats) -> None:
        self.pull_seconds += stats.seconds
        self.exposed_seconds += stats.exposed_seconds
        times = StageTimes(
            transfer=stats.seconds,
            bytes_moved=stats.bytes_moved,
            pages_pulled=stats.pages_pulled,
            pages_skipped=pull.first_page,
        )
        if self._kind is Pool.MEDIA:
            self._loop.post(MediaImported(pull.request, pull.source_key, times, pull.attempt))
            return
        try:
            continuation = decode(parse(final, common_pb2.Continuation), Continuation, self._around.clock.now())
        except TriptychError as error:
            self.failed(pull, Status.DATA_LOSS, f"the final record cannot be read: {error.message}")
            return
        self._loop.post(Imported(pull.request, continuation, times, pull.attempt))

    def withdrawn(self, pull: StartPull, reason: str) -> None:
        """Of KV: the scheduler knows why. Embeddings that others may wait for, too, are wanted again."""
        log.debug("pull of %s withdrawn: %s", pull.request, reason)
        if self._kind is Pool.MEDIA:
            self._loop.post(self._failure(pull, Status.UNAVAILABLE, reason))

    def failed(self, pull: StartPull, status: Status, reason: str) -> None:
        self.pulls_failed += 1
        self._loop.post(self._failure(pull, status, reason))

    def _failure(self, pull: StartPull, status: Status, reason: str) -> ImportFailed:
        key = pull.source_key if self._kind is Pool.MEDIA else 0
        return ImportFailed(pull.request, status, reason, pull.attempt, self._kind, key)

"""One live instance: the pure core, its device loop, and its ends of transfers, wired together.

Three kinds of thread meet here. The device loop runs the core and calls `on_message`, `on_export`, `on_flush`; the event loop runs transfers and
control; a few pool threads wait for devices. What the core says about transfers takes effect at once, on the device loop; what it says to
the scheduler and to gateways is collected and handed to the event loop once an iteration.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from triptych.proto.v1 import common_pb2
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import EngineError, InstanceLostError, Status, TriptychError
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load, Role, TransportKind
from triptych.runtime.core.request import Continuation
from triptych.runtime.core.tasks import AbortTask, HeldTask, PrefillDone, StageTimes, TaskCommand, TaskEnded, TaskReport
from triptych.runtime.engine.compile_guard import compile_count
from triptych.runtime.instance.core import InstanceCore, RolesRefusedError
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    Command,
    CompleteStaging,
    Emit,
    EmitPrompt,
    Imported,
    ImportFailed,
    InstanceMessage,
    LeaseExtended,
    OpenStaging,
    Report,
    StagedReleased,
    StartPull,
)
from triptych.runtime.instance.plan import Export
from triptych.runtime.transfer.consumer import PullLimits, PullStats, TransferConsumer
from triptych.runtime.transfer.delivery import Delivery
from triptych.runtime.transfer.producer import TransferProducer, serve_gather
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.grpc import Channels
from triptych.runtime.wire.convert import decode, encode, parse
from triptych.runtime.worker.build import InstanceParts
from triptych.runtime.worker.device_loop import DeviceLoop
from triptych.runtime.worker.service import InstanceSnapshot

log = logging.getLogger(__name__)

SNAPSHOT_TIMEOUT = 10.0  # seconds; a loop that is alive answers within a step
LOAD_INTERVAL = 0.1  # seconds; heartbeats are no more frequent than this


def new_epoch() -> int:
    """A random incarnation number; never 0."""
    return secrets.randbits(62) + 1


@dataclass(frozen=True)
class Surroundings:
    """What the process gives to each of its instances."""

    clock: Clock
    loop: asyncio.AbstractEventLoop
    threads: Executor
    transports: Mapping[TransportKind, Transport]
    channels: Channels
    report: Callable[[InstanceRef, TaskReport], None]
    emit: Callable[[Emit | EmitPrompt], None]
    reset: Callable[[InstanceRef, InstanceInfo, str], None]
    roles_refused: Callable[[InstanceRef, str], None]
    died: Callable[[str], None]


class LiveInstance:
    """Started by `start`, ended by `stop`; in between it obeys `command`. Owns its device loop."""

    def __init__(self, parts: InstanceParts, core: InstanceCore, info: InstanceInfo, around: Surroundings):
        self._parts = parts
        self._core = core
        self._info = info
        self._around = around
        self._out: list[tuple[InstanceRef, InstanceMessage]] = []
        self._preemptions = 0
        self._pulls_failed = 0
        self._switches, self._switch_seconds = 0, 0.0
        self._producer = TransferProducer(
            info.ref,
            parts.header,
            parts.mover.layout.head_unit,
            around.transports,
            self,
            threads=around.threads,
            loop=around.loop,
        )
        self._consumer = TransferConsumer(
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
        self._loop = DeviceLoop(
            info.ref.id,
            core,
            parts.engine,
            self,
            clock=around.clock,
            on_death=lambda error: around.died(f"{info.ref.id}: {error}"),
        )
        self._load, self._load_due = core.load(), 0.0
        self._compiled_before = compile_count()

    @property
    def info(self) -> InstanceInfo:
        return self._info

    @property
    def producer(self) -> TransferProducer:
        return self._producer

    def load(self) -> Load:
        """How busy the instance was at most LOAD_INTERVAL ago; from any thread."""
        return self._load

    def start(self) -> None:
        self._compiled_before = compile_count()
        self._loop.start()

    async def stop(self) -> None:
        """Ends the loop after what is already queued, then its pulls."""
        if self._loop.is_alive():
            self._loop.stop()
            await asyncio.get_running_loop().run_in_executor(self._around.threads, self._loop.join)
        self._consumer.cancel_all()
        await self._consumer.close()

    def command(self, command: TaskCommand) -> None:
        """A command of the scheduler for `info.ref`. Dropped if the device loop has begun a new epoch by the time it gets there: the scheduler
        hears of the reset, and starts elsewhere or anew what it had sent to the old one."""
        ref = self._info.ref

        def obey() -> None:
            if self._core.ref == ref:
                self._loop.feed(Command(command))
            else:
                log.info("dropped %s for %s, which has ended", type(command).__name__, ref)

        self._loop.call(obey)

    def declare(self, told: Callable[[InstanceInfo, tuple[HeldTask, ...]], None]) -> None:
        """Have `told` called on the event loop with what this instance is and holds between two steps. Reports made before that moment go out
        before the call, later ones after it."""

        def take() -> None:
            held = self._core.held()
            self._flush()
            self._around.loop.call_soon_threadsafe(lambda: told(self._info, held))

        self._loop.call(take)

    def abandon(self, reason: str) -> None:
        """End every task: nobody is left who would."""

        def end() -> None:
            for task in self._core.held():
                log.warning("%s: request %s is abandoned: %s", task.ref.id, task.request, reason)
                self._loop.feed(Command(AbortTask(task.request, Status.UNAVAILABLE, reason, task.role, task.attempt)))

        self._loop.call(end)

    def set_roles(self, ref: InstanceRef, roles: frozenset[Role]) -> None:
        """Take on other roles under a new epoch, if `ref` still lives and holds no task; else say that it stays as it is."""

        def switch() -> None:
            if self._core.ref != ref:
                return
            started, renewed = self._around.clock.now(), InstanceRef(ref.id, new_epoch())
            try:
                self._core.switch(renewed, roles)
            except RolesRefusedError as error:
                self._around.loop.call_soon_threadsafe(self._around.roles_refused, ref, error.message)
                return
            self._producer.restart(renewed)
            self._flush()
            seconds = self._around.clock.now() - started
            self._switches, self._switch_seconds = self._switches + 1, self._switch_seconds + seconds
            reason = f"switched to {', '.join(sorted(roles))} in {seconds * 1e3:.2f} ms"
            self._around.loop.call_soon_threadsafe(self._announce, ref, renewed, roles, reason)

        self._loop.call(switch)

    def set_share(self, ref: InstanceRef, prefill_tokens: int) -> None:
        """Split the compute of later steps so, if `ref` still lives."""

        def split() -> None:
            if self._core.ref == ref:
                self._core.set_share(prefill_tokens)

        self._loop.call(split)

    async def snapshot(self) -> InstanceSnapshot:
        """Taken on the device loop, between two steps."""
        answer: asyncio.Future[InstanceSnapshot] = self._around.loop.create_future()

        def take() -> None:
            snapshot = self._snapshot()
            self._around.loop.call_soon_threadsafe(lambda: answer.done() or answer.set_result(snapshot))

        self._loop.call(take)
        try:
            async with asyncio.timeout(SNAPSHOT_TIMEOUT):
                return await answer
        except TimeoutError:
            raise InstanceLostError(
                f"{self._info.ref.id}: its device loop has not answered for {SNAPSHOT_TIMEOUT:g} s"
            ) from None

    # ---- LoopOwner: on the device loop ----------------------------------------------------------------------------------------------

    def on_message(self, message: InstanceMessage) -> None:
        match message:
            case OpenStaging():
                self._producer.open_staging(message)
            case CompleteStaging():
                final = encode(message.continuation, common_pb2.Continuation, self._around.clock.now())
                self._producer.complete(message.key, final.SerializeToString())
            case CloseStaging():
                self._producer.close(message.key, message.status, message.reason)
            case StartPull():
                self._start_pull(message)
            case CancelPull():
                self._consumer.cancel(message.request)
            case _:
                if isinstance(message, Report) and isinstance(message.report, TaskEnded):
                    self._preemptions += message.report.preemptions
                self._out.append((self._core.ref, message))

    def on_export(self, export: Export) -> None:
        self._producer.export(export.key, export.first_page, export.pages)

    def on_flush(self) -> None:
        now = self._around.clock.now()
        if now >= self._load_due:
            self._load, self._load_due = self._core.load(), now + LOAD_INTERVAL
        self._flush()

    def on_engine_lost(self, error: EngineError) -> None:
        self._parts.engine.rebuild()
        old, reason = self._core.ref, f"engine failed: {error.message}"
        ref = InstanceRef(old.id, new_epoch())
        self._producer.restart(ref)
        for message in self._core.reset(ref, reason=reason):
            self.on_message(message)
        self._out.clear()  # nobody may hear of the old epoch's tasks: their instance is gone, and the reset says so
        self._around.loop.call_soon_threadsafe(self._announce, old, ref, None, reason)

    def _flush(self) -> None:
        """Hand what was said so far to the event loop, in order."""
        if self._out:
            messages, self._out = self._out, []
            self._around.loop.call_soon_threadsafe(self._send, messages)

    def _start_pull(self, message: StartPull) -> None:
        try:
            self._consumer.start(message, self._transport_to(message.source_address))
        except TriptychError as error:
            self._loop.post(ImportFailed(message.request, error.status, error.message, message.attempt))

    def _transport_to(self, address: str) -> TransportKind:
        """`local` inside this process, otherwise the first that crosses processes. The peer refuses what it does not serve."""
        kinds = list(self._around.transports)
        if address == self._info.address:
            return kinds[0]
        return next((kind for kind in kinds if kind is not TransportKind.LOCAL), TransportKind.LOCAL)

    def _snapshot(self) -> InstanceSnapshot:
        resources, stats, config = self._core.resources(), self._producer.stats, self._parts.engine.config
        return InstanceSnapshot(
            self._info,
            self._core.load(),
            resources={
                "pages_total": config.num_pages - 1,
                "pages_free": resources.free_pages,
                "pages_cached": resources.cached_pages,
                "pages_sequence": resources.sequence_pages,
                "pages_staged": resources.staged_pages,
                "pages_reserved": resources.reserved_pages,
                "slots_total": config.max_num_seqs,
                "slots_free": resources.free_slots,
                "staged_keys": len(resources.staged_keys),
                "tasks": len(resources.tasks),
                "waiting": resources.waiting,
                "running": resources.running,
                "pulls": self._consumer.pulls,
                "staging_keys": stats.keys,
                "staging_bytes": stats.staged_bytes,
            },
            counters={
                "steps": self._loop.steps,
                "device_wait_us": int(self._loop.wait_seconds * 1e6),
                "compiled_after_ready": compile_count() - self._compiled_before,
                "preemptions": self._preemptions,
                "pulls_failed": self._pulls_failed,
                "stale": self._core.stale,
                "role_switches": self._switches,
                "role_switch_us": int(self._switch_seconds * 1e6),
                "prefill_tokens": self._loop.prefill_tokens,
                "kv_bytes_offered": stats.offered_bytes,
                "kv_bytes_received": self._consumer.bytes_received,
            },
        )

    # ---- ProducerEvents and ConsumerEvents: from any thread -------------------------------------------------------------------------

    def request_gather(self, key: int) -> None:
        self._loop.call(lambda: serve_gather(self._producer, self._parts.mover, self._parts.engine.pools, key))

    def alive(self, key: int) -> None:
        self._loop.post(LeaseExtended(key))

    def released(self, key: int) -> None:
        self._loop.post(StagedReleased(key))

    def deliver(self, delivery: Delivery) -> None:
        def scatter() -> None:
            engine = self._parts.engine
            try:
                engine.pools = delivery.scatter(self._parts.mover, engine.pools)
            except EngineError as error:
                raise engine.fail(error) from error

        self._loop.call(scatter)

    def done(self, pull: StartPull, final: bytes, stats: PullStats) -> None:
        try:
            continuation = decode(parse(final, common_pb2.Continuation), Continuation, self._around.clock.now())
        except TriptychError as error:
            self.failed(pull, Status.DATA_LOSS, f"the final record cannot be read: {error.message}")
            return
        times = StageTimes(
            transfer=stats.seconds,
            bytes_moved=stats.bytes_moved,
            pages_pulled=stats.pages_pulled,
            pages_skipped=pull.first_page,
        )
        self._loop.post(Imported(pull.request, continuation, times, pull.attempt))

    def withdrawn(self, pull: StartPull, reason: str) -> None:
        log.debug("pull of %s withdrawn: %s", pull.request, reason)

    def failed(self, pull: StartPull, status: Status, reason: str) -> None:
        self._pulls_failed += 1
        self._loop.post(ImportFailed(pull.request, status, reason, pull.attempt))

    # ---- on the event loop ----------------------------------------------------------------------------------------------------------

    def _send(self, messages: list[tuple[InstanceRef, InstanceMessage]]) -> None:
        for ref, message in messages:
            if isinstance(message, Report):
                self._around.report(ref, _without_logprobs(message.report))
            elif isinstance(message, Emit | EmitPrompt):
                self._around.emit(message)

    def _announce(self, old: InstanceRef, ref: InstanceRef, roles: frozenset[Role] | None, reason: str) -> None:
        info = replace(self._info, ref=ref)
        if roles is not None:
            info = replace(info, roles=roles, switchable=(info.roles | info.switchable) - roles)
        log.info("%s: epoch %d: %s", ref.id, ref.epoch, reason)
        self._info = info
        self._around.reset(old, info, reason)


def _without_logprobs(report: TaskReport) -> TaskReport:
    """Prompt log-probabilities go to the gateway with the tokens; the scheduler has no use for them."""
    if isinstance(report, PrefillDone) and report.report.prompt_logprobs:
        return replace(report, report=replace(report.report, prompt_logprobs=()))
    return report

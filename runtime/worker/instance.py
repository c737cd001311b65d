"""One live instance: the pure core, its device loop, and its ends of transfers, wired together.

Three kinds of thread meet here. The device loop runs the core and calls `on_message`, `on_export`, `on_flush`; the event loop runs transfers and
control; a few pool threads wait for devices. What the core says about transfers takes effect at once, on the device loop; what it says to
the scheduler and to gateways is collected and handed to the event loop once an iteration.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from triptych.runtime.core.errors import EngineError, InstanceLostError, StaleEpochError, Status
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.tasks import AbortTask, HeldTask, PrefillDone, TaskCommand, TaskEnded, TaskReport
from triptych.runtime.engine.compile_guard import compile_count
from triptych.runtime.engine.shelf import Pixels
from triptych.runtime.instance.core import InstanceCore, RolesRefusedError
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    Command,
    CompleteStaging,
    DropMedia,
    Emit,
    EmitPrompt,
    InstanceMessage,
    KeepStaged,
    MediaArrived,
    OpenStaging,
    Report,
    StartPull,
)
from triptych.runtime.instance.plan import Export, Pool
from triptych.runtime.transfer.producer import TransferProducer
from triptych.runtime.worker.build import InstanceParts
from triptych.runtime.worker.device_bytes import device_bytes
from triptych.runtime.worker.device_loop import DeviceLoop
from triptych.runtime.worker.ends import PoolEnds
from triptych.runtime.worker.media_door import MediaDoor
from triptych.runtime.worker.occupancy import moved, occupancy
from triptych.runtime.worker.service import InstanceSnapshot
from triptych.runtime.worker.surroundings import Surroundings

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_TIMEOUT = 10.0  # seconds; a loop that is alive answers within a step
LOAD_INTERVAL = 0.1  # seconds; heartbeats are no more frequent than this


def new_epoch() -> int:
    """A random incarnation number; never 0."""
    return secrets.randbits(62) + 1


class LiveInstance:
    """Started by `start`, ended by `stop`; in between it obeys `command`. Owns its device loop."""

    def __init__(self, parts: InstanceParts, core: InstanceCore, info: InstanceInfo, around: Surroundings):
        self._parts = parts
        self._core = core
        self._info = info
        self._around = around
        self._out: list[tuple[InstanceRef, InstanceMessage]] = []
        self._preemptions = 0
        self._switches, self._switch_seconds = 0, 0.0
        self._loop = DeviceLoop(
            info.ref.id,
            core,
            parts.engine,
            self,
            clock=around.clock,
            on_death=lambda error: around.died(f"{info.ref.id}: {error}"),
            on_step=None if around.on_step is None else partial(around.on_step, info.ref.id),
        )
        engine, self._ends = parts.engine, dict[Pool, PoolEnds]()
        if parts.kv is not None:
            self._ends[Pool.KV] = PoolEnds(Pool.KV, parts.kv, engine, engine, info, self._loop, around)
        if parts.media is not None and engine.media is not None:
            self._ends[Pool.MEDIA] = PoolEnds(Pool.MEDIA, parts.media, engine.media, engine, info, self._loop, around)
        self._shelf = None if parts.media is None or engine.media is None else engine.media.shelf
        self.door = self._open_door()
        """Where pixels come in; None on an instance without an encoder."""
        self._load, self._load_due = core.load(), 0.0
        self._device_bytes = device_bytes(engine)
        self._compiled_before = compile_count()

    @property
    def info(self) -> InstanceInfo:
        return self._info

    @property
    def producers(self) -> tuple[TransferProducer, ...]:
        """Of its pools."""
        return tuple(ends.producer for ends in self._ends.values())

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
        for ends in self._ends.values():
            await ends.close()

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
            for ends in self._ends.values():
                ends.restart(renewed)
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
        return await self._asked(self._snapshot)

    async def _asked(self, question: Callable[[], T]) -> T:
        """The answer of the device loop, between two steps. Raises InstanceLostError if it does not come."""
        answer: asyncio.Future[T] = self._around.loop.create_future()

        def ask() -> None:
            found = question()
            self._around.loop.call_soon_threadsafe(lambda: answer.done() or answer.set_result(found))

        self._loop.call(ask)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await answer
        except TimeoutError:
            raise InstanceLostError(
                f"{self._info.ref.id}: its device loop has not answered for {ANSWER_TIMEOUT:g} s"
            ) from None

    # ---- LoopOwner: on the device loop ----------------------------------------------------------------------------------------------

    def on_message(self, message: InstanceMessage) -> None:
        match message:
            case OpenStaging() | CompleteStaging() | CloseStaging() | StartPull() | CancelPull() | KeepStaged():
                self._ends[message.pool].on_message(message)
            case DropMedia():
                if self._shelf is not None:
                    self._shelf.drop(message.hash)
            case _:
                if isinstance(message, Report) and isinstance(message.report, TaskEnded):
                    self._preemptions += message.report.preemptions
                self._out.append((self._core.ref, message))

    def on_export(self, export: Export, layer_group: int | None = None) -> None:
        self._ends[export.pool].on_export(export, layer_group)

    def on_flush(self) -> None:
        now = self._around.clock.now()
        if now >= self._load_due:
            self._load, self._load_due = self._core.load(), now + LOAD_INTERVAL
        self._flush()

    def on_engine_lost(self, error: EngineError) -> None:
        self._parts.engine.rebuild()
        old, reason = self._core.ref, f"engine failed: {error.message}"
        ref = InstanceRef(old.id, new_epoch())
        for ends in self._ends.values():
            ends.restart(ref)
        if self._shelf is not None:
            self._shelf.clear()
        for message in self._core.reset(ref, reason=reason):
            self.on_message(message)
        self._out.clear()  # nobody may hear of the old epoch's tasks: their instance is gone, and the reset says so
        self._around.loop.call_soon_threadsafe(self._announce, old, ref, None, reason)

    def _flush(self) -> None:
        """Hand what was said so far to the event loop, in order."""
        if self._out:
            messages, self._out = self._out, []
            self._around.loop.call_soon_threadsafe(self._send, messages)

    def _snapshot(self) -> InstanceSnapshot:
        return InstanceSnapshot(
            self._info,
            self._core.load(),
            resources=self._device_bytes
            | occupancy(self._core.resources(), self._parts.engine.config, self._ends, self._shelf),
            counters={
                "steps": self._loop.steps,
                "device_wait_us": int(self._loop.wait_seconds * 1e6),
                "compiled_after_ready": compile_count() - self._compiled_before,
                "preemptions": self._preemptions,
                "stale": self._core.stale,
                "verifications": self._core.speculated.verifications,
                "tokens_drafted": self._core.speculated.drafted,
                "tokens_accepted": self._core.speculated.accepted,
                "role_switches": self._switches,
                "role_switch_us": int(self._switch_seconds * 1e6),
                "prefill_tokens": self._loop.prefill_tokens,
                "encoded_items": self._loop.encoded_items,
                "encoded_patches": self._loop.encoded_patches,
                **self._parts.start.counters,
                **moved(self._ends, self._core.media_counts),
            },
        )

    # ---- media ----------------------------------------------------------------------------------------------------------------------

    def _open_door(self) -> MediaDoor | None:
        if self._parts.media is None:
            return None
        stage, config = self._parts.engine.media, self._parts.engine.config
        if stage is None or stage.encoder is None or stage.shelf is None:
            return None
        return MediaDoor(
            stage.encoder,
            stage.shelf,
            config.encode_patches,
            lambda: self._info.ref,
            self._lacking,
            self._store,
            self._crowded,
        )

    async def _lacking(self, owner: InstanceRef, hash: str) -> MediaItem | None:
        """See `media_door.Lacking`."""
        now, item = await self._asked(lambda: (self._core.ref, self._core.lacks_pixels(hash)))
        if now != owner:
            raise StaleEpochError(f"{owner.id} is at epoch {now.epoch}; epoch {owner.epoch} is gone")
        return item

    async def _crowded(self, owner: InstanceRef, hash: str) -> bool:
        """See `media_door.Crowded`."""
        now = self._around.clock.now()
        return await self._asked(lambda: self._core.ref == owner and self._core.pixels_refused(hash, now))

    def _store(self, owner: InstanceRef, hash: str, pixels: Pixels, told: Callable[[bool], object]) -> None:
        """See `media_door.Store`."""

        def put() -> None:
            assert self._shelf is not None, "there is a door"
            lives = self._core.ref == owner
            if lives:
                self._shelf.put(hash, pixels)
                self._loop.feed(MediaArrived(hash))
            else:
                self._shelf.release(pixels.nbytes)
            self._around.loop.call_soon_threadsafe(told, lives)

        self._loop.call(put)

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

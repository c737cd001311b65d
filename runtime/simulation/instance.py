"""One simulated instance: the real InstanceCore, a device that takes time, and both ends of transfers.

The loop is that of `runtime/worker/device_loop.py`: everything that touches pages goes through it in one order; at most two steps are in flight,
and while it waits for a step it hears of nothing else. What the core says about transfers takes effect at once; reports and tokens are handed
to the worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.core.tasks import AbortTask, HeldTask, TaskCommand, TaskReport
from triptych.runtime.instance.core import InstanceCore, RolesRefusedError
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    Command,
    CompleteStaging,
    DeviceReady,
    DropMedia,
    Emit,
    EmitPrompt,
    InstanceEvent,
    InstanceMessage,
    KeepStaged,
    MediaArrived,
    OpenStaging,
    Report,
    StartPull,
    StepDone,
    Tick,
)
from triptych.runtime.instance.plan import StepPlan, StepResult
from triptych.runtime.simulation.consumer import SimConsumer
from triptych.runtime.simulation.device import Device, DeviceFault
from triptych.runtime.simulation.events import EventLoop, Process
from triptych.runtime.simulation.network import Network
from triptych.runtime.simulation.producer import SimProducer
from triptych.runtime.simulation.timing import StepTime
from triptych.runtime.simulation.transfer import Surroundings, TransferConfig

TICK = 0.05  # seconds, as in the live device loop; only while tasks are held, because nothing else can come due
MAX_IN_FLIGHT = 2

Job = Callable[[], None]


class Owner(Protocol):
    """The worker that an instance belongs to."""

    def report(self, ref: InstanceRef, report: TaskReport) -> None: ...

    def emit(self, message: Emit | EmitPrompt) -> None: ...

    def on_reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None: ...

    def on_roles_refused(self, ref: InstanceRef, reason: str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What an instance is made of. `core` and `device` are of one InstanceConfig; the digests are that config's."""

    info: InstanceInfo
    core: InstanceCore
    device: Device
    step_time: StepTime
    digest: str
    media_digest: str = ""


class SimInstance:
    """Lives inside a worker's process; dies with it."""

    def __init__(self, parts: Parts, process: Process, owner: Owner, network: Network, transfer: TransferConfig):
        self.core = parts.core
        self.info = parts.info
        self.steps = 0
        self.busy_seconds = 0.0
        self.shelf: set[str] = set()  # whose pixels are here
        self._parts = parts
        self._process = process
        self._owner = owner
        self._loop: EventLoop = network.loop
        self._inbox: deque[InstanceEvent | Job] = deque()
        self._in_flight: deque[tuple[float, StepResult]] = deque()
        self._free_at = 0.0  # when the device has done everything that was dispatched
        self._life = 0  # tells collections of steps that an engine failure dropped
        self._turning = False
        self._waiting = False  # for a step
        self._ticking = False
        around = Surroundings(
            process,
            network.loop,
            network,
            parts.device,
            transfer,
            self.post,
            self.call,
            lambda: max(self._free_at, self._loop.now()),
        )
        self.producer = SimProducer(parts.info.ref, parts.digest, around, parts.media_digest)
        self.consumer = SimConsumer(around)

    @property
    def ref(self) -> InstanceRef:
        return self.core.ref

    def load(self) -> Load:
        return self.core.load()

    # ---- from the worker

    def command(self, ref: InstanceRef, command: TaskCommand) -> None:
        """A command for `ref`; dropped if the instance is another incarnation by the time it gets there."""

        def obey() -> None:
            if self.core.ref == ref:
                self._feed(Command(command))

        self.call(obey)

    def post(self, event: InstanceEvent) -> None:
        self._inbox.append(event)
        self._wake()

    def call(self, job: Job) -> None:
        """Run `job` between two steps."""
        self._inbox.append(job)
        self._wake()

    def asked(self, owner: InstanceRef, name: str, told: Callable[[bool, bool], None]) -> None:
        """Have `told` called with whether `owner`, if it is this incarnation, lacks pixels, and whether it is no more."""

        def answer() -> None:
            stale = self.core.ref != owner
            told(not stale and self.core.lacks_pixels(name) is not None, stale)

        self.call(answer)

    def put(self, owner: InstanceRef, name: str, told: Callable[[bool, bool], None]) -> None:
        """Pixels came for `owner`; `told` hears False, and whether that incarnation is no more."""

        def shelve() -> None:
            stale = self.core.ref != owner
            if not stale:
                self.shelf.add(name)
                self._feed(MediaArrived(name))
            told(False, stale)

        self.call(shelve)

    def declare(self, told: Callable[[InstanceInfo, tuple[HeldTask, ...]], None]) -> None:
        """Have `told` called with what this instance is and holds between two steps."""
        self.call(lambda: told(self.info, self.core.held()))

    def abandon(self, reason: str) -> None:
        """End every task: nobody is left who would."""

        def end() -> None:
            for task in self.core.held():
                self._feed(Command(AbortTask(task.request, Status.UNAVAILABLE, reason, task.role, task.attempt)))

        self.call(end)

    def set_roles(self, ref: InstanceRef, roles: frozenset[Role], epoch: int) -> None:
        """Take on other roles under a new epoch, if `ref` still lives and holds no task; else say that it stays as it is."""

        def switch() -> None:
            if self.core.ref != ref:
                return
            renewed, possible = InstanceRef(ref.id, epoch), self.info.roles | self.info.switchable
            try:
                self.core.switch(renewed, roles)
            except RolesRefusedError as error:
                self._owner.on_roles_refused(ref, error.message)
                return
            self.producer.restart(renewed)
            self.info = replace(self.info, ref=renewed, roles=roles, switchable=possible - roles)
            self._owner.on_reset(ref, self.info, "switched")

        self.call(switch)

    def set_share(self, ref: InstanceRef, prefill_tokens: int) -> None:
        """Split the compute of later steps so, if `ref` still lives."""

        def split() -> None:
            if self.core.ref == ref:
                self.core.set_share(prefill_tokens)

        self.call(split)

    def lose_engine(self, epoch: int, reason: str) -> None:
        """A device program failed: the pool is lost, and the instance goes on as a new incarnation."""
        old, ref = self.core.ref, InstanceRef(self.core.ref.id, epoch)
        self._halt(ref, reason)
        self.info = replace(self.info, ref=ref)
        self._owner.on_reset(old, self.info, reason)
        self._turn()

    def stop(self, reason: str) -> None:
        """End for good: nothing runs any more, and whoever pulls or is pulled from hears of it."""
        self._inbox.clear()
        self._halt(self.core.ref, reason)

    def _halt(self, ref: InstanceRef, reason: str) -> None:
        """Drop what the device does and everything that is held; nothing happens before the next turn."""
        self._turning = True
        self._in_flight.clear()
        self._life += 1
        self._waiting = False
        self.producer.restart(ref)
        for message in self.core.reset(ref, reason=reason):
            if not isinstance(message, Report | Emit | EmitPrompt):  # nobody may hear of the old epoch's tasks
                self._obey(message)

    # ---- the loop

    def _wake(self) -> None:
        if not self._turning and not self._waiting:
            self._turn()

    def _turn(self) -> None:
        self._turning = True
        while True:
            while self._inbox:
                item = self._inbox.popleft()
                if callable(item):
                    item()
                else:
                    self._feed(item)
            dispatched = len(self._in_flight) < MAX_IN_FLIGHT and self._feed(DeviceReady())
            if self._in_flight and (not dispatched or len(self._in_flight) == MAX_IN_FLIGHT):
                self._waiting = True
                self._loop.at(self._in_flight[0][0], self._process, self._collect, self._life)
                break
            if not dispatched:
                break
        self._turning = False
        self._watch()

    def _collect(self, life: int) -> None:
        if life == self._life:
            self._waiting, self._turning = False, True
            self.steps += 1
            self._feed(StepDone(self._in_flight.popleft()[1]))
            self._turn()

    def _watch(self) -> None:
        if not self._ticking and self.core.held():
            self._ticking = True
            self._loop.after(TICK, self._process, self._tick)

    def _tick(self, _: None) -> None:
        self._ticking = False
        if self._waiting:  # each step looks at the timers, too
            self._watch()
        else:
            self.post(Tick())

    def _feed(self, event: InstanceEvent) -> bool:
        """Give the core an event and act on its answers in order; True if one was a plan."""
        dispatched = False
        for message in self.core.handle(event, self._loop.now()):
            if isinstance(message, StepPlan):
                self._dispatch(message)
                dispatched = True
            else:
                self._obey(message)
        return dispatched

    def _dispatch(self, plan: StepPlan) -> None:
        if missing := [encode.hash for encode in plan.encodes if encode.hash not in self.shelf]:
            raise DeviceFault(f"{self.core.ref.id} is to encode {missing}, whose pixels are not here")
        seconds = self._parts.step_time.seconds(plan, self.core)
        self.busy_seconds += seconds
        self._free_at = max(self._free_at, self._loop.now()) + seconds
        self._in_flight.append((self._free_at, self._parts.device.execute(plan)))
        for export in plan.exports:
            self.producer.export(export)

    def _obey(self, message: InstanceMessage) -> None:
        match message:
            case Report():
                self._owner.report(self.core.ref, message.report)
            case Emit() | EmitPrompt():
                self._owner.emit(message)
            case OpenStaging():
                self.producer.open_staging(message)
            case CompleteStaging():
                self.producer.complete(message.key, message.continuation)
            case CloseStaging():
                self.producer.close(message.key, message.status, message.reason)
            case StartPull():
                self.consumer.start(message)
            case CancelPull():
                self.consumer.cancel(message)
            case KeepStaged():
                self.consumer.keep(message)
            case DropMedia():
                self.shelf.discard(message.hash)

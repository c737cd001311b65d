"""One instance of a study: the real InstanceCore, a device that takes the time which a model says, and its ends of
transfers. Nothing fails here.

It keeps the order of the live device loop (runtime/worker/device_loop.py): at most two steps in flight, the next one
dispatched before the last one is read; while the loop waits for a step, whatever arrives waits in its inbox. A step
starts when it was dispatched or when the one before ends, whichever is later. Pages that a step filled can be pulled
when it is done; pulls of one instance share its outgoing and incoming link, first come first served.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triptych.runtime.core.instance import InstanceInfo
from triptych.runtime.core.request import Continuation
from triptych.runtime.core.tasks import ReserveDecode, StageTimes, StartDecode, TaskReport
from triptych.runtime.instance.composer import StepComposer
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    Command,
    CompleteStaging,
    DeviceReady,
    Emit,
    EmitPrompt,
    Imported,
    InstanceEvent,
    InstanceMessage,
    LeaseExtended,
    OpenStaging,
    Report,
    StagedReleased,
    StartPull,
    StepDone,
    Tick,
)
from triptych.runtime.instance.plan import Drawn, Export, RowResult, StepPlan, StepResult
from triptych.runtime.instance.state import PlannedRow
from triptych.runtime.instance.termination import StopProbe
from triptych.runtime.simulation.events import EventLoop
from triptych.runtime.simulation.steptime import StepShape, StepTimes, shape_of
from triptych.runtime.simulation.study_leap import DecodeRun, Draws, find_run, plan_decodes, take_quiet

MAX_IN_FLIGHT = 2
READY, TICK = DeviceReady(), Tick()


@dataclass(frozen=True)
class Wire:
    """How KV leaves and enters an instance: bytes a second each way, seconds to set a pull up and to hear of its end,
    bytes of KV a token."""

    bandwidth: float
    latency: float
    token_bytes: int


@dataclass(frozen=True)
class Around:
    """What an instance needs of its cluster: the clock, where reports and tokens go, who draws tokens, and other
    instances by name."""

    loop: EventLoop
    report: Callable[[StudyInstance, TaskReport], None]
    emit: Callable[[Emit | EmitPrompt], None]
    draws: Draws
    find: Callable[[str], StudyInstance]


@dataclass(slots=True)
class Flight:
    """A step in flight: when it is done, what it asked of the device when it was dispatched, the pages that it fills for
    pullers."""

    done: float
    shape: StepShape
    exports: tuple[Export, ...]


@dataclass(slots=True)
class Staging:
    """KV that waits for its puller: when which pages were ready, and who pulls."""

    ready: list[tuple[float, int]]
    final: Continuation | None = None
    pull: Pull | None = None


@dataclass(slots=True)
class Pull:
    """A pull under way; `moved` is when the last byte so far has arrived."""

    message: StartPull
    puller: StudyInstance
    began: float
    moved: float
    pages: int = 0


class StudyInstance:
    """Started idle; `post` is how anything reaches it."""

    __slots__ = (
        "_around", "_asides", "_composer", "_flights", "_inbox", "_leaps", "_pulls", "_run", "_stagings", "_taken", "_times", "_waits", "_wire",
        "busy_seconds", "core", "egress", "free_at", "info", "ingress", "steps",
    )  # fmt: skip

    def __init__(
        self,
        info: InstanceInfo,
        config: InstanceConfig,
        times: StepTimes,
        wire: Wire,
        around: Around,
        *,
        composer: StepComposer,
        seed: int,
        leaps: bool = True,
    ):
        """`leaps`: take decode steps cheaply and runs of them at once (study_leap.py); without, the core plans every
        step."""
        self.info = info
        self.core = InstanceCore(config, stop_probe=_no_stop_strings, random=random.Random(seed), composer=composer)
        self._composer, self._times, self._wire, self._around, self._leaps = composer, times, wire, around, leaps
        self._flights: deque[Flight] = deque()
        self._inbox: list[InstanceEvent] = []
        self._waits = False  # the loop waits for the oldest step in flight
        self._run: DecodeRun | None = None
        self._asides: list[InstanceEvent] = []  # arrived in the step under way, and do not end the run
        self._taken: Sequence[PlannedRow] = ()  # rows of the step that is done, to be planned again
        self._stagings: dict[int, Staging] = {}
        self._pulls: dict[str, Pull] = {}
        self.free_at = self.egress = self.ingress = self.busy_seconds = 0.0
        self.steps = 0

    # ---- the loop

    def post(self, event: InstanceEvent) -> None:
        """Something arrives now."""
        if self._waits:
            if self._run is None:
                self._inbox.append(event)
            else:
                self._overhear(self._run, event)
        else:
            self._feed(event)
            self._turn()

    def tick(self) -> None:
        """Time passed: leases of what is being pulled are extended, others may end. While steps run, each looks at the
        time itself."""
        for pull in self._pulls.values():
            self._around.find(pull.message.source_instance).post(LeaseExtended(pull.message.source_key))
        if not self._waits:
            self.post(TICK)

    def settle(self) -> None:
        """Let the core's state be that of now, in the middle of a run too."""
        if self._run is not None:
            self._advance(self._run, self._run.done_by(self._around.loop.now()))

    def _turn(self) -> None:
        """Dispatch what can be dispatched; then wait for the oldest step, if any, or for the end of a run."""
        flights = self._flights
        while len(flights) < MAX_IN_FLIGHT and self._plan():
            pass
        self._waits = bool(flights)
        if not flights:
            return
        if self._leaps and len(flights) == MAX_IN_FLIGHT:
            ends = (flights[0].done, flights[1].done)
            run = self._run = find_run(
                self.core.state, self._composer, flights[1].shape, ends, self._times, self._around.draws
            )
            if run is not None:
                self._around.loop.at(run.ends[run.steps], None, self._end_run, run)
                return
        self._around.loop.at(flights[0].done, None, self._collect)

    def _end_run(self, run: DecodeRun) -> None:
        """The step after the run's last one is done, unless something ended the run earlier."""
        if self._run is not run:
            return
        before = run.taken
        self._taken, new = run.finish()
        self._run = None
        self._moved(run, before, new)
        self._flights.popleft()
        self._hear_inbox()

    def _overhear(self, run: DecodeRun, event: InstanceEvent) -> None:
        """Something arrived in the middle of a run. The loop sees it when the step under way is done; what touches no
        running sample does not end the run."""
        if run.cut:
            self._inbox.append(event)
            return
        step = run.done_by(self._around.loop.now())
        pages = self._pages_aside(event)
        if pages is not None and step < run.steps and run.stands(pages):
            if not self._asides:
                self._around.loop.at(run.ends[step], None, self._hear, (run, step))
            self._asides.append(event)
            return
        self._inbox, self._asides = [*self._asides, event], []
        self._around.loop.at(run.cut_at(step), None, self._end_run, run)

    def _pages_aside(self, event: InstanceEvent) -> int | None:
        """Pages that an event may take which touches no running sample; None for any other event."""
        match event.command if isinstance(event, Command) else event:
            case ReserveDecode(request=request):
                return len(request.prompt) // self.info.capacity.page_size + request.sampling.n
            case StartDecode() | LeaseExtended():
                return 0
            case StagedReleased():
                return None if self.core.state.waiting else 0  # what it frees may be waited for
            case _:
                return None

    def _hear(self, what: tuple[DecodeRun, int]) -> None:
        """Step number `step` of a run is done: the loop sees what arrived during it. The run goes on as long as it
        stands."""
        run, step = what
        if self._run is not run or run.cut:
            return  # it ended in the same step, and the inbox has everything
        asides, self._asides = self._asides, []
        if not run.stands(sum(self._pages_aside(event) or 0 for event in asides)):
            run.cut_at(step)
            self._inbox = asides
            self._end_run(run)
            return
        if self.core.state.memory.caching:
            self._advance(run, step + 1)  # what is heard may look for KV that was computed just now
        for event in asides:
            self._feed(event)
        if not run.stands(0):
            self._around.loop.at(run.cut_at(step + 1), None, self._end_run, run)

    def _advance(self, run: DecodeRun, results: int) -> None:
        before = run.taken
        new = run.advance(results)
        if new:
            self._moved(run, before, new)

    def _moved(self, run: DecodeRun, before: int, new: int) -> None:
        """`new` results of a run were taken since the first `before`."""
        at, flights = run.taken, self._flights
        flights[0].done, flights[1].done = run.ends[at], run.ends[at + 1]
        self.free_at = flights[1].done
        self.busy_seconds += run.ends[at + 1] - run.ends[before + 1]
        self.steps += new

    def _collect(self, _: object) -> None:
        flight = self._flights.popleft()
        done = False
        if self._leaps:
            self._taken, done = take_quiet(self.core.state, self._around.draws)
        if not done:
            self._feed(StepDone(self._result()))
        if flight.exports:
            self._exported(flight.exports, flight.done)
        self._hear_inbox()

    def _hear_inbox(self) -> None:
        inbox, self._inbox = self._inbox, []
        for event in inbox:
            self._feed(event)
        self._turn()

    def _feed(self, event: InstanceEvent) -> bool:
        """Give the core an event and do what it answers; True if that was a plan."""
        for message in self.core.handle(event, self._around.loop.now()):
            if isinstance(message, StepPlan):
                self._dispatch(shape_of(message), message.exports)
                return True
            self._obey(message)
        return False

    def _plan(self) -> bool:
        """Dispatch one more step; False if there is nothing to do."""
        taken, self._taken = self._taken, ()
        state = self.core.state
        due = state.timers.first
        if not (state.running or state.filling or state.waiting) and (due is None or due > self._around.loop.now()):
            return False
        shape = plan_decodes(state, self._composer, self._around.loop.now(), taken) if self._leaps else None
        if shape is None:
            return self._feed(READY)
        self._dispatch(shape, ())
        return True

    def _dispatch(self, shape: StepShape, exports: tuple[Export, ...]) -> None:
        seconds = self._times.seconds(shape)
        self.free_at = max(self.free_at, self._around.loop.now()) + seconds
        self.busy_seconds += seconds
        self.steps += 1
        self._flights.append(Flight(self.free_at, shape, exports))

    def _result(self) -> StepResult:
        """What the oldest plan in flight gave."""
        step = self.core.state.in_flight[0]
        return StepResult(step.id, tuple(map(self._row_result, step.rows)))

    def _row_result(self, row: PlannedRow) -> RowResult:
        draws, position = self._around.draws, row.computed
        drawn = tuple(Drawn(stream.slot or 0, draws(stream, position, 1)[0]) for stream, _ in row.draws)
        return RowResult(row.sequence.number, drawn)

    # ---- what the core says

    def _obey(self, message: InstanceMessage) -> None:
        match message:
            case Report():
                self._around.report(self, message.report)
            case Emit() | EmitPrompt():
                self._around.emit(message)
            case OpenStaging():
                self._stagings[message.key] = Staging([])
            case CompleteStaging():
                staging = self._stagings[message.key]
                staging.final = message.continuation
                self._finish(staging)
            case CloseStaging():
                self._stagings.pop(message.key, None)
            case StartPull():
                self._pulls[message.request] = pull = Pull(message, self, self._around.loop.now(), 0.0)
                self._around.loop.after(self._wire.latency, None, self._around.find(message.source_instance).open, pull)
            case CancelPull():
                self._pulls.pop(message.request, None)

    # ---- transfers

    def open(self, pull: Pull) -> None:
        """A puller has reached this instance: what is ready goes out, what comes later follows by itself."""
        staging = self._stagings.get(pull.message.source_key)
        if staging is None:
            return  # aborted meanwhile: the puller is told by the scheduler
        staging.pull = pull
        for ready, pages in staging.ready:
            self._move(pull, ready, pages)
        self._finish(staging)

    def _exported(self, exports: tuple[Export, ...], done: float) -> None:
        for export in exports:
            staging = self._stagings.get(export.key)
            if staging is None:
                continue
            if staging.pull is None:
                staging.ready.append((done, len(export.pages)))
            else:
                self._move(staging.pull, done, len(export.pages))
            if export.last:
                self._finish(staging)

    def _move(self, pull: Pull, ready: float, pages: int) -> None:
        """Send pages once they are ready and both links are free."""
        wire, puller = self._wire, pull.puller
        size = pages * self.info.capacity.page_size * wire.token_bytes
        start = max(ready, self._around.loop.now(), self.egress, puller.ingress)
        self.egress = puller.ingress = end = start + size / min(wire.bandwidth, puller._wire.bandwidth)
        pull.moved, pull.pages = max(pull.moved, end), pull.pages + pages

    def _finish(self, staging: Staging) -> None:
        """If everything has been sent, the puller hears of it when the last byte is there."""
        pull = staging.pull
        if pull is None or staging.final is None or pull.pages < len(pull.message.pages):
            return
        now = self._around.loop.now()
        self._around.loop.at(
            max(pull.moved, now) + self._wire.latency, None, pull.puller._arrived, (pull, staging.final)
        )

    def _arrived(self, what: tuple[Pull, Continuation]) -> None:
        pull, final = what
        message, now = pull.message, self._around.loop.now()
        if self._pulls.get(message.request) is not pull:
            return
        del self._pulls[message.request]
        size = pull.pages * self.info.capacity.page_size * self._wire.token_bytes
        times = StageTimes(transfer=now - pull.began, bytes_moved=size, pages_pulled=pull.pages)
        self.post(Imported(message.request, final, times, message.attempt))
        source = self._around.find(message.source_instance)
        self._around.loop.after(self._wire.latency, None, source.post, StagedReleased(message.source_key))


def _no_stop_strings(stop: tuple[str, ...]) -> StopProbe:
    raise ValueError(f"simulated requests have no stop strings, but {stop} came")

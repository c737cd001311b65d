"""One instance of a study: the real InstanceCore, and a device that takes the time which a model says. Nothing fails
here.

It keeps the order of the live device loop (runtime/worker/device_loop.py): at most two steps in flight, the next one
dispatched before the last one is read; while the loop waits for a step, whatever arrives waits in its inbox. A step
starts when it was dispatched or when the one before ends, whichever is later. Pages that a step filled can be pulled
when it is done (study_transfer.py). Pixels are a message, and what is known of them is that they are there.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from triptych.runtime.core.instance import InstanceInfo
from triptych.runtime.core.tasks import ReserveDecode, StartDecode, TaskReport
from triptych.runtime.instance.columns import DrawnRows
from triptych.runtime.instance.composer import StepComposer
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.messages import (
    CancelPull,
    CloseStaging,
    Command,
    CompleteStaging,
    DeviceReady,
    Emit,
    EmitPrompt,
    InstanceEvent,
    InstanceMessage,
    KeepStaged,
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
from triptych.runtime.simulation.study_post import Hear, Post
from triptych.runtime.simulation.study_transfer import Gone, Pages, PullOpened, Transfers, Wire

MAX_IN_FLIGHT = 2
READY, TICK = DeviceReady(), Tick()


@dataclass(frozen=True)
class Around:
    """What the instances of one process share.

    Attributes:
        report: where reports go, by the number of the instance's party.
        emit: where tokens go.
        hear: what else the gateway learns of a request.
        draws: who draws tokens.
        number: of an instance's party, by its name.
    """

    loop: EventLoop
    post: Post
    report: Callable[[StudyInstance, TaskReport], None]
    emit: Callable[[Emit | EmitPrompt], None]
    hear: Hear
    draws: Draws
    number: Callable[[str], int]


@dataclass(slots=True)
class Flight:
    """A step in flight: when it is done, what it asked of the device when it was dispatched, the pages that it fills for
    pullers."""

    done: float
    shape: StepShape
    exports: tuple[Export, ...]


class StudyInstance:
    """Started idle; `receive` is how anything reaches it."""

    __slots__ = (
        "_around", "_asides", "_beside", "_composer", "_flights", "_inbox", "_leaps", "_run", "_times", "_transfers", "_waits",
        "busy_seconds", "core", "free_at", "info", "number", "steps",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        info: InstanceInfo,
        config: InstanceConfig,
        times: StepTimes,
        wire: Wire,
        around: Around,
        *,
        composer: StepComposer,
        leaps: bool = True,
    ):
        """`number`: of its party, and the seed of its keys; `leaps`: take decode steps cheaply and runs of them at once
        (study_leap.py); without, the core plans every step."""
        self.number, self.info = number, info
        self.core = InstanceCore(config, stop_probe=_no_stop_strings, random=random.Random(number), composer=composer)
        self._composer, self._times, self._around, self._leaps = composer, times, around, leaps
        self._transfers = Transfers(number, around.loop, around.post, wire, self.post)
        self._flights: deque[Flight] = deque()
        self._inbox: list[InstanceEvent] = []
        self._waits = False  # the loop waits for the oldest step in flight
        self._run: DecodeRun | None = None
        self._asides: list[InstanceEvent] = []  # arrived in the step under way, and do not end the run
        self._beside: dict[int, str] = {}  # sequences that wait for embeddings, and their requests
        self.free_at = self.busy_seconds = 0.0
        self.steps = 0

    # ---- the loop

    def receive(self, message: InstanceEvent | PullOpened | Pages | Gone) -> None:
        """A message of another party arrives now."""
        if isinstance(message, PullOpened):
            self._transfers.opened(message)
        elif isinstance(message, Pages):
            self._transfers.arriving(message)
        elif isinstance(message, Gone):
            self._transfers.lost(message)
        else:
            self.post(message)

    def post(self, event: InstanceEvent) -> None:
        """The loop is told of something now."""
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
        self._transfers.extend()
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
        if self._leaps and len(flights) == MAX_IN_FLIGHT and not (flights[0].exports or flights[1].exports):
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
        new = run.finish()
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
                state = self.core.state  # what it frees may be waited for
                return None if state.waiting or (state.media is not None and state.media.gatherings) else 0
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
            done = take_quiet(self.core.state, self._around.draws)
        if not done:
            self._feed(StepDone(self._result()))
        if flight.exports:
            self._transfers.exported(flight.exports)
        self._hear_inbox()

    def _hear_inbox(self) -> None:
        inbox, self._inbox = self._inbox, []
        for event in inbox:
            self._feed(event)
        self._turn()

    def _feed(self, event: InstanceEvent) -> bool:
        """Give the core an event and do what it answers; True if that was a plan."""
        planned = False
        for message in self.core.handle(event, self._around.loop.now()):
            if isinstance(message, StepPlan):
                self._dispatch(shape_of(message), message.exports)
                planned = True
            else:
                self._obey(message)
        media = self.core.state.media
        if media is not None and (self._beside or media.gatherings):
            self._look_beside(media)
        return planned

    def _look_beside(self, media: MediaMemory) -> None:
        """Tell the gateway when a prompt begins and ends to wait for embeddings."""
        now, hear, before = self._around.loop.now(), self._around.hear, self._beside
        self._beside = {g.fill.sequence.number: g.fill.task.request.id for g in media.gatherings.values() if g.beside}
        for number, request in self._beside.items():
            if number not in before:
                hear(request, "wanted", now)
        for number, request in before.items():
            if number not in self._beside:
                hear(request, "gathered", now)

    def _plan(self) -> bool:
        """Dispatch one more step; False if there is nothing to do."""
        state = self.core.state
        due = state.timers.first
        busy = state.running or state.filling or state.waiting or (state.media is not None and state.media.encoding)
        if not busy and (due is None or due > self._around.loop.now()):
            return False
        shape = plan_decodes(state, self._composer, self._around.loop.now()) if self._leaps else None
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
        decodes, draws = step.decodes, self._around.draws
        drawn: list[int] = []
        for stream in decodes.streams:  # what one draws that has ended since is not read
            drawn += draws(stream, 0 if stream.sequence is None else len(stream.sequence.tokens), 1)
        rows = DrawnRows(decodes.numbers, [stream.slot or 0 for stream in decodes.streams], drawn)
        return StepResult(step.id, (*rows, *map(self._row_result, step.rows)) if step.rows else rows)

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
                self._transfers.stage(message.key, message.pool)
            case CompleteStaging():
                self._transfers.complete(message.key, message.continuation)
            case CloseStaging():
                self._transfers.unstage(message.key)
            case StartPull():
                self._transfers.pull(message, self._around.number(message.source_instance))
            case CancelPull():
                self._transfers.cancel(message)
            case KeepStaged():
                self._transfers.keep(self._around.number(message.owner.id), message.keys)


def _no_stop_strings(stop: tuple[str, ...]) -> StopProbe:
    raise ValueError(f"simulated requests have no stop strings, but {stop} came")

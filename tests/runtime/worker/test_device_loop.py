"""The device loop asks for work whenever there may be some, and ends a lost engine's steps."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.results import PartialStep
from triptych.runtime.instance.messages import DeviceReady, InstanceEvent, LeaseExtended, StepDone, Tick
from triptych.runtime.instance.plan import Export, Pool, StepPlan, StepResult
from triptych.runtime.worker import device_loop
from triptych.runtime.worker.device_loop import DeviceLoop

STEPS = 20


class OneAtATime:
    """Has something to plan only after the result of the last plan, as when the queue's head waits for the pages of what runs."""

    ahead = 1

    def __init__(self) -> None:
        self.planned = self.done = 0
        self.finished = threading.Event()

    def handle(self, event: InstanceEvent, now: float) -> list[StepPlan]:
        if isinstance(event, StepDone):
            self.done += 1
            if self.done == STEPS:
                self.finished.set()
        if isinstance(event, DeviceReady) and self.planned < min(STEPS, self.done + self.ahead):
            self.planned += 1
            return [StepPlan(self.planned, ())]
        return []


class Immediate:
    def dispatch(self, plan: StepPlan) -> StepPlan:
        return plan

    def collect(self, pending: StepPlan) -> StepResult:
        return StepResult(pending.id, ())


class Owner:
    def __init__(self) -> None:
        self.lost: list[EngineError] = []

    def on_message(self, message: object) -> None: ...

    def on_export(self, export: Export, layer_group: int | None = None) -> None: ...

    def on_flush(self) -> None: ...

    def on_engine_lost(self, error: EngineError) -> None:
        self.lost.append(error)


def started(core: OneAtATime, owner: Owner) -> DeviceLoop:
    loop = DeviceLoop("test", core, Immediate(), owner, clock=MonotonicClock(), on_death=lambda error: None)
    loop.start()
    return loop


def test_a_result_that_makes_room_is_followed_by_the_next_plan_at_once() -> None:
    def seconds() -> float:
        core = OneAtATime()
        before = time.monotonic()
        loop = started(core, Owner())
        assert core.finished.wait(60)
        taken = time.monotonic() - before
        loop.stop()
        loop.join()
        return taken

    # The best of many: one that sleeps between its steps does so every time, a busy machine does not.
    best = min(seconds() for _ in range(20))
    assert best < STEPS * device_loop.TICK / 2, f"{STEPS} steps took {best:.2f} s: the loop slept between them"


def test_an_answer_does_not_wait_for_the_step_that_runs() -> None:
    """Refusals, grants and the like are given between steps; a step may take long."""
    said: list[str] = []
    hidden: list[object] = []

    class Answers(OneAtATime):
        ahead = 2

        def handle(self, event: InstanceEvent, now: float) -> list[Any]:
            return ["answer"] if isinstance(event, LeaseExtended) else super().handle(event, now)

    class Sends(Owner):
        def on_message(self, message: object) -> None:
            hidden.append(message)

        def on_flush(self) -> None:
            said.extend(str(message) for message in hidden)
            hidden.clear()

    class Watches(Immediate):
        def collect(self, pending: StepPlan) -> StepResult:
            assert not hidden, f"{hidden} must wait for step {pending.id}"
            loop.post(LeaseExtended(pending.id))  # while the next step is under way
            return super().collect(pending)

    core, deaths = Answers(), list[BaseException]()
    loop = DeviceLoop("test", core, Watches(), Sends(), clock=MonotonicClock(), on_death=deaths.append)
    loop.start()
    assert core.finished.wait(60)
    loop.stop()
    loop.join()
    assert not deaths and said == ["answer"] * STEPS


def test_a_failing_job_loses_the_engine_and_the_loop_goes_on() -> None:
    def fail() -> None:
        raise EngineError("a scatter failed")

    core, owner = OneAtATime(), Owner()
    loop = started(core, owner)
    loop.call(fail)
    loop.call(lambda: loop.feed(Tick()))
    loop.stop()
    loop.join()
    assert [str(error) for error in owner.lost] == ["a scatter failed"]


class ByGroup(Immediate):
    """Steps of GROUPS layer groups. What happens is written down, and a job comes in while the loop waits for a group."""

    GROUPS = 4

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened
        self.loop: DeviceLoop | None = None

    def dispatch(self, plan: StepPlan) -> Any:
        self.happened.append(f"{plan.id}: group 0")
        return PartialStep(
            plan, self, cast(Any, SimpleNamespace(dispatched=1, must_wait=False)), *cast(Any, [None] * 3)
        )

    def advance(self, step: PartialStep) -> Any:
        run = cast(Any, step.run)
        if run.must_wait:
            assert self.loop is not None
            self.loop.call(lambda: self.happened.append("a job"))
        self.happened.append(f"{step.plan.id}: group {run.dispatched}")
        run.dispatched, run.must_wait = run.dispatched + 1, True
        return step.plan if run.dispatched == self.GROUPS else step

    def collect(self, pending: StepPlan) -> StepResult:
        self.happened.append(f"{pending.id}: read")
        return super().collect(pending)


def test_a_step_in_layer_groups_is_exported_group_by_group_with_jobs_in_between() -> None:
    """The second step's first groups are dispatched before the first step is read, its others after: nothing waits for a step."""
    happened: list[str] = []

    class Plans(OneAtATime):
        def handle(self, event: InstanceEvent, now: float) -> list[StepPlan]:
            exports = (Export(7, 0, (1,), True), Export(8, 0, (2,), True, Pool.MEDIA))
            if isinstance(event, StepDone) and self.done == 1:
                self.finished.set()
            self.done += isinstance(event, StepDone)
            if isinstance(event, DeviceReady) and self.planned < 2:
                self.planned += 1
                return [StepPlan(self.planned, (), exports=exports)]
            return []

    class Exports(Owner):
        def on_export(self, export: Export, layer_group: int | None = None) -> None:
            happened.append(f"{export.pool} {'whole' if layer_group is None else layer_group}")

    core, engine, deaths = Plans(), ByGroup(happened), list[BaseException]()
    loop = engine.loop = DeviceLoop("test", core, engine, Exports(), clock=MonotonicClock(), on_death=deaths.append)
    loop.start()
    assert core.finished.wait(60)
    loop.stop()
    loop.join()
    assert not deaths
    first = [
        "1: group 0",
        "kv 0",
        "media whole",
        "1: group 1",
        "kv 1",
        "1: group 2",
        "kv 2",
        "a job",
        "1: group 3",
        "kv 3",
        "a job",
    ]
    second = [
        "2: group 0",
        "kv 0",
        "media whole",
        "2: group 1",
        "kv 1",
        "1: read",
        "2: group 2",
        "kv 2",
        "a job",
        "2: group 3",
        "kv 3",
        "a job",
    ]
    assert happened == [*first, *second, "2: read"]

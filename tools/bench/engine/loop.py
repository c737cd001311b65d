"""An instance core and an engine on this thread, in the order of the device loop (runtime/worker/device_loop.py), with the time of each part of the host's work.

Like the device loop it asks for a plan, dispatches it, and reads the step before it only then. What a worker does besides is missing: other threads'
events, messages to gateways and the scheduler, and transfers.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import jax

from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import StartLocal
from triptych.runtime.engine.results import PartialStep, PendingStep
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import Command, DeviceReady, Emit, InstanceMessage, StepDone
from triptych.runtime.instance.plan import Drawn, RowResult, StepPlan, StepResult

MAX_IN_FLIGHT = 2  # as the device loop has it


class StepEngine(Protocol):
    """The part of an engine that runs steps."""

    def dispatch(self, plan: StepPlan) -> PendingStep | PartialStep: ...
    def collect(self, pending: PendingStep | PartialStep) -> StepResult: ...


@dataclass
class HostSeconds:
    """What the host did for some steps, and how long it waited for the device.

    Attributes:
        plan: the core composing steps. pack_and_dispatch: `Engine.dispatch`. read: results from the device's words.
        apply: the core taking results. wait: until a step was done.
    """

    plan: float = 0.0
    pack_and_dispatch: float = 0.0
    wait: float = 0.0
    read: float = 0.0
    apply: float = 0.0

    @property
    def work(self) -> float:
        """All but waiting."""
        return self.plan + self.pack_and_dispatch + self.read + self.apply

    def plus(self, other: HostSeconds) -> HostSeconds:
        return HostSeconds(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def over(self, count: int) -> HostSeconds:
        """Of each of so many steps."""
        return HostSeconds(*(seconds / max(1, count) for seconds in astuple(self)))


@dataclass(frozen=True)
class Step:
    """A step that was read, and when (seconds of the performance counter)."""

    plan: StepPlan
    at: float


class EngineLoop:
    """Runs what is submitted on `core`. `submitted` and `finished` count requests, `emitted` tokens; `host` adds up until it is replaced."""

    def __init__(self, core: InstanceCore, engine: StepEngine) -> None:
        self.core, self._engine = core, engine
        self._in_flight: deque[tuple[StepPlan, PendingStep | PartialStep]] = deque()
        self.host = HostSeconds()
        self.submitted = self.finished = self.emitted = 0

    def submit(self, request: Request) -> None:
        """Queue a request."""
        self.submitted += 1
        self._heard(self.core.handle(Command(StartLocal(request)), time.monotonic()))

    def step(self) -> Step | None:
        """Dispatch what can be dispatched and read the oldest step in flight; None when there is nothing to do."""
        while len(self._in_flight) < MAX_IN_FLIGHT and self._dispatch():
            pass
        if not self._in_flight:
            return None
        plan, pending = self._in_flight.popleft()
        began = time.perf_counter()
        if isinstance(pending, PendingStep):
            wait_for(pending)
        waited = time.perf_counter()
        result = self._engine.collect(pending)
        read = time.perf_counter()
        self._heard(self.core.handle(StepDone(result), time.monotonic()))
        ended = time.perf_counter()
        self.host.wait += waited - began
        self.host.read += read - waited
        self.host.apply += ended - read
        return Step(plan, read)

    def drain(self) -> None:
        """Read what is in flight and dispatch nothing more."""
        while self._in_flight:
            _, pending = self._in_flight.popleft()
            self._heard(self.core.handle(StepDone(self._engine.collect(pending)), time.monotonic()))

    def skip(self) -> StepPlan | None:
        """Take the next step as done without running it, every draw being token 1; its plan. The engine only seats its samplers."""
        plan = self._plan()
        if plan is not None:
            self._engine.collect(self._engine.dispatch(StepPlan(plan.id, seats=plan.seats)))
            rows = tuple(RowResult(row.sequence, tuple(Drawn(draw.slot, 1) for draw in row.draws)) for row in plan.rows)
            self._heard(self.core.handle(StepDone(StepResult(plan.id, rows)), time.monotonic()))
        return plan

    def _plan(self) -> StepPlan | None:
        messages = self.core.handle(DeviceReady(), time.monotonic())
        plan = messages[-1] if messages and isinstance(messages[-1], StepPlan) else None
        self._heard(messages if plan is None else messages[:-1])
        return plan

    def _dispatch(self) -> bool:
        began = time.perf_counter()
        plan = self._plan()
        planned = time.perf_counter()
        self.host.plan += planned - began
        if plan is None:
            return False
        self._in_flight.append((plan, self._engine.dispatch(plan)))
        self.host.pack_and_dispatch += time.perf_counter() - planned
        return True

    def _heard(self, messages: list[StepPlan | InstanceMessage] | list[Any]) -> None:
        for message in messages:
            if isinstance(message, Emit):
                self.emitted += len(message.tokens)
                self.finished += sum(token.finish is not None for token in message.tokens)


def wait_for(pending: PendingStep) -> None:
    """Until the device is done with a step, and nothing else: what is left to do for its result is the host's work."""
    last = pending.done if pending.draws is None else pending.draws
    if last is not None:
        jax.block_until_ready(last)

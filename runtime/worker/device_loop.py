"""The thread that owns one instance: its InstanceCore, its engine and its pools.

Everything that touches the pools goes through this loop, so order on the device is the order here: steps, page gathers for pullers,
scatters of what was pulled. The loop keeps two steps in flight at most: the next one is dispatched before the last one's tokens are
read, and no further ahead, so that arriving KV waits one step and not thirty.

Other threads post events or jobs (`post`, `call`); messages leave through `deliver`, called once an iteration with everything that
iteration produced. Host work here delays tokens: nothing slow belongs in a job.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import EngineError
from triptych.runtime.instance.messages import DeviceReady, InstanceEvent, InstanceMessage, StepDone, Tick
from triptych.runtime.instance.plan import Export, StepPlan, StepResult

log = logging.getLogger(__name__)

TICK = 0.05  # seconds; half of what InstanceCore asks for, so that deadlines are seen in time
MAX_IN_FLIGHT = 2  # steps dispatched and not yet read: one computing, one waiting behind it


class StepEngine(Protocol):
    """What the loop needs of an engine (runtime/engine/engine.py; tests use arithmetic)."""

    def dispatch(self, plan: StepPlan) -> Any: ...
    def collect(self, pending: Any) -> StepResult: ...
    def rebuild(self) -> None: ...


class StepCore(Protocol):
    """What the loop needs of the pure half."""

    def handle(self, event: InstanceEvent, now: float) -> Sequence[StepPlan | InstanceMessage]: ...


Job = Callable[[], None]


class DeviceLoop(threading.Thread):
    """Runs until `stop`. `on_engine_lost(error)` is called on this thread after the engine was rebuilt with empty pools."""

    def __init__(
        self,
        name: str,
        core: StepCore,
        engine: StepEngine,
        *,
        clock: Clock,
        deliver: Callable[[list[InstanceMessage]], None],
        export: Callable[[Export], None],
        on_engine_lost: Callable[[EngineError], list[InstanceMessage]],
    ):
        super().__init__(name=f"device-{name}", daemon=True)
        self.core = core
        self.engine = engine
        self._clock = clock
        self._deliver = deliver
        self._export = export
        self._on_engine_lost = on_engine_lost
        self._inbox: queue.SimpleQueue[InstanceEvent | Job | None] = queue.SimpleQueue()
        self._in_flight: deque[Any] = deque()
        self._checks: deque[tuple[Any, np.ndarray, Callable[[bool], None]]] = deque()
        self._out: list[InstanceMessage] = []
        self._next_tick = 0.0
        self.steps = 0
        self.busy_seconds = 0.0

    # ---- from other threads ---------------------------------------------------------------------------------------------------------

    def post(self, event: InstanceEvent) -> None:
        """Hand an event to the core."""
        self._inbox.put(event)

    def call(self, job: Job) -> None:
        """Run `job` on this thread, between steps."""
        self._inbox.put(job)

    def stop(self) -> None:
        """End the loop after what is already queued; the caller joins."""
        self._inbox.put(None)

    # ---- for jobs on this thread ----------------------------------------------------------------------------------------------------

    def verify(self, arrived: Any, expected: np.ndarray, verdict: Callable[[bool], None]) -> None:
        """Call `verdict(equal)` once the device has computed `arrived`, without waiting for it now."""
        arrived.copy_to_host_async()
        self._checks.append((arrived, expected, verdict))

    def feed(self, event: InstanceEvent) -> bool:
        """Give the core an event; dispatch a plan if it answers with one. True if a plan was dispatched."""
        dispatched = False
        for message in self.core.handle(event, self._clock.now()):
            if isinstance(message, StepPlan):
                self._in_flight.append(self.engine.dispatch(message))
                for export in message.exports:
                    self._export(export)
                dispatched = True
            else:
                self._out.append(message)
        return dispatched

    # ---- the loop -------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        running = True
        while running:
            try:
                running = self._iterate()
            except EngineError as error:
                log.error("%s: engine lost: %s", self.name, error)
                self._in_flight.clear()
                self._fail_checks()
                self.engine.rebuild()
                self._out.extend(self._on_engine_lost(error))
            self._flush()
        self._fail_checks()
        self._flush()

    def _iterate(self) -> bool:
        if not self._drain(wait=not self._in_flight and not self._checks):
            return False
        now = self._clock.now()
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self.feed(Tick())
        dispatched = len(self._in_flight) < MAX_IN_FLIGHT and self.feed(DeviceReady())
        self._settle_checks(block=not self._in_flight and not dispatched)
        if self._in_flight and (not dispatched or len(self._in_flight) == MAX_IN_FLIGHT):
            started = self._clock.now()
            result = self.engine.collect(self._in_flight.popleft())
            self.busy_seconds += self._clock.now() - started
            self.steps += 1
            self.feed(StepDone(result))
        return True

    def _drain(self, *, wait: bool) -> bool:
        """Handle everything queued; if `wait`, sleep until something comes or the next tick. False when told to stop."""
        while True:
            try:
                item = self._inbox.get(timeout=TICK) if wait else self._inbox.get_nowait()
            except queue.Empty:
                return True
            if item is None:
                return False
            if callable(item):
                item()
            else:
                self.feed(item)
            wait = False

    def _settle_checks(self, *, block: bool) -> None:
        while self._checks and (block or self._checks[0][0].is_ready()):
            arrived, expected, verdict = self._checks.popleft()
            verdict(bool(np.array_equal(np.asarray(arrived), expected)))
            block = False

    def _fail_checks(self) -> None:
        while self._checks:
            self._checks.popleft()[2](False)

    def _flush(self) -> None:
        if self._out:
            messages, self._out = self._out, []
            self._deliver(messages)

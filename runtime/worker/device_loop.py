"""The thread that owns one instance: its InstanceCore, its engine and its pools.

Everything that touches the pools goes through this loop, so order on the device is the order here: steps, page gathers for pullers,
scatters of what was pulled. The loop keeps two steps in flight at most: the next one is dispatched before the last one's tokens are
read, and no further ahead, so that arriving KV waits one step and not thirty. A step that is computed layer group by layer group is dispatched
so, too: what comes in between (gathers of its first layers, scatters) waits for a group.

Other threads post events or jobs (`post`, `call`). Messages of the core are handled here and now, in order, because some of them (closing a
staging, cancelling a pull) must take effect before the next step is dispatched; the handler must not block. Host work here delays tokens:
nothing slow belongs in a job.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.results import PartialStep
from triptych.runtime.instance.columns import prefill_tokens
from triptych.runtime.instance.messages import DeviceReady, InstanceEvent, InstanceMessage, StepDone, Tick
from triptych.runtime.instance.plan import Export, Pool, StepPlan, StepResult

log = logging.getLogger(__name__)

TICK = 0.05  # seconds; half of what InstanceCore asks for, so that deadlines are seen in time
MAX_IN_FLIGHT = 2  # steps dispatched and not yet read: one computing, one waiting behind it

Job = Callable[[], None]


class StepEngine(Protocol):
    """What the loop needs of an engine (runtime/engine/engine.py)."""

    def dispatch(self, plan: StepPlan) -> Any: ...
    def collect(self, pending: Any) -> StepResult: ...


class StepCore(Protocol):
    """What the loop needs of the pure half."""

    def handle(self, event: InstanceEvent, now: float) -> Sequence[StepPlan | InstanceMessage]: ...


class LoopOwner(Protocol):
    """Who acts on what the loop produces. Called on the loop's thread; must return at once."""

    def on_message(self, message: InstanceMessage) -> None: ...

    def on_export(self, export: Export, layer_group: int | None = None) -> None:
        """What fills these pages was dispatched just now: the plan, or (with a number) as far as that layer group."""
        ...

    def on_flush(self) -> None:
        """The loop is about to wait for the device, or an iteration ended: send what it produced."""
        ...

    def on_engine_lost(self, error: EngineError) -> None:
        """A device program failed and the pools are gone: rebuild, reset the core, start a new epoch. What it raises ends the loop."""
        ...


class DeviceLoop(threading.Thread):
    """Runs until `stop`. If it dies of anything but an engine failure it calls `on_death` and ends."""

    def __init__(
        self,
        name: str,
        core: StepCore,
        engine: StepEngine,
        owner: LoopOwner,
        *,
        clock: Clock,
        on_death: Callable[[BaseException], None],
        on_step: Callable[[StepPlan, float, float], None] | None = None,
    ):
        """`on_step` is told of each step as it is read, with the times of its dispatch and of now."""
        super().__init__(name=f"device-{name}", daemon=True)
        self._core = core
        self._engine = engine
        self._owner = owner
        self._clock = clock
        self._on_death = on_death
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[InstanceEvent | Job | None] = queue.SimpleQueue()
        self._in_flight: deque[Any] = deque()
        self._plans: deque[tuple[StepPlan, float]] = deque()  # of what is in flight, and when it was dispatched
        self._next_tick = 0.0
        self._idle = False  # the core had nothing to plan, and was told nothing since
        self.steps = 0
        self.prefill_tokens = 0  # computed in prompt chunks; on a decode instance only a preemption computes any
        self.encoded_items = 0
        self.encoded_patches = 0
        self.wait_seconds = 0.0  # spent waiting for the device: the rest of a busy loop's time is host work

    # ---- from other threads ---------------------------------------------------------------------------------------------------------

    def post(self, event: InstanceEvent) -> None:
        """Hand an event to the core."""
        self._inbox.put(event)

    def call(self, job: Job) -> None:
        """Run `job` on this thread, between steps. An EngineError it raises counts as one of the engine's."""
        self._inbox.put(job)

    def feed(self, event: InstanceEvent) -> None:
        """For jobs, on this thread: hand the core an event now."""
        self._feed(event)

    def stop(self) -> None:
        """End the loop after what is already queued; the caller joins."""
        self._inbox.put(None)

    # ---- the loop -------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            running = True
            while running:
                try:
                    running = self._iterate()
                except EngineError as error:
                    log.error("%s: engine lost: %s", self.name, error)
                    self._in_flight.clear()
                    self._plans.clear()
                    self._owner.on_engine_lost(error)
                self._owner.on_flush()
        except BaseException as error:
            log.exception("%s died", self.name)
            self._on_death(error)
            raise

    def _iterate(self) -> bool:
        idle, self._idle = self._idle, False
        if not self._drain(wait=idle):
            return False
        now = self._clock.now()
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self._feed(Tick())
        if self._advance():
            return True
        dispatched = not self._partial and len(self._in_flight) < MAX_IN_FLIGHT and self._feed(DeviceReady())
        if dispatched and self._partial:
            return True  # its second group goes out before anything is waited for
        if self._in_flight and (not dispatched or len(self._in_flight) == MAX_IN_FLIGHT):
            self._owner.on_flush()  # what was heard and answered since the last step must not wait for this one
            started = self._clock.now()
            result = self._engine.collect(self._in_flight.popleft())
            plan, dispatched_at = self._plans.popleft()
            now = self._clock.now()
            self.wait_seconds += now - started
            if self._on_step is not None:
                self._on_step(plan, dispatched_at, now)
            self.steps += 1
            self._feed(StepDone(result))  # may have freed what the head of the queue waits for: ask again at once
        elif not dispatched:
            self._idle = True
        return True

    @property
    def _partial(self) -> PartialStep | None:
        """The newest step, if it has layer groups that are still to be dispatched."""
        newest = self._in_flight[-1] if self._in_flight else None
        return newest if isinstance(newest, PartialStep) else None

    def _advance(self) -> bool:
        """Dispatch the next layer group of a step that has more; False if there is none, or an older step is to be read first."""
        step = self._partial
        if step is None or (len(self._in_flight) > 1 and step.run.must_wait):
            return False
        if step.run.must_wait:
            self._owner.on_flush()
        group, started = step.dispatched, self._clock.now()
        self._in_flight[-1] = step.advance()
        self.wait_seconds += self._clock.now() - started
        for export in step.plan.exports:
            if export.pool is Pool.KV:
                self._owner.on_export(export, group)
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
                self._feed(item)
            wait = False

    def _feed(self, event: InstanceEvent) -> bool:
        """Give the core an event and act on its answers in order; True if one was a plan."""
        dispatched = False
        for message in self._core.handle(event, self._clock.now()):
            if isinstance(message, StepPlan):
                began = self._clock.now()
                step = self._engine.dispatch(message)
                self._in_flight.append(step)
                self._plans.append((message, began))
                partial = isinstance(step, PartialStep)
                self.prefill_tokens += prefill_tokens(message.rows)
                self.encoded_items += len(message.encodes)
                self.encoded_patches += sum(item.patches for item in message.encodes)
                for export in message.exports:
                    self._owner.on_export(export, 0 if partial and export.pool is Pool.KV else None)
                dispatched = True
            else:
                self._owner.on_message(message)
        return dispatched

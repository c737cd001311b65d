"""The virtual clock and its event heap, and the processes that events happen to.

Time moves only from one event to the next. Events at one time happen in the order in which they were asked for, so a run is a function of what
was fed to it and of nothing else. An event belongs to a process (or to the world): a dead process never sees it, a paused one sees it
when it goes on, after everything that came before, as a process does that was stopped with SIGSTOP.

A message between the parties of a cluster (`deliver`) is known long before it comes. At its time it comes before every other event, and of several
the one whose sender has the smaller number: an order that does not depend on which parties share this loop (study_split.py).

An event is a tuple (time, serial, process, function, argument): nothing else is allocated for it, because studies of large clusters push hundreds of
millions of them through here.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any

Action = Callable[[Any], None]
_FIRST = -(1 << 62)  # serials of messages are below those of all other events
_SENDER = 44  # bits for serials of one sender


class Process:
    """Something that runs, is stopped, goes on, and dies for good: a restart is another Process.

    Attributes:
        name: unique among the living.
        alive, paused: see `kill`, `pause`.
    """

    def __init__(self, name: str):
        self.name = name
        self.alive = True
        self.paused = False
        self._backlog: deque[tuple[Action, Any]] = deque()

    def happen(self, action: Action, argument: Any) -> None:
        """Let `action(argument)` happen to this process now, later if it is paused, never if it is dead."""
        if self.paused:
            if self.alive:
                self._backlog.append((action, argument))
        elif self.alive:
            action(argument)

    def pause(self) -> None:
        """Stop executing, as SIGSTOP does: connections stay, nothing is read, timers come late."""
        self.paused = True

    def proceed(self) -> None:
        """Go on, with everything that waited."""
        self.paused = False
        while self._backlog and self.alive and not self.paused:
            action, argument = self._backlog.popleft()
            action(argument)

    def kill(self) -> None:
        """End without a word, as SIGKILL does."""
        self.alive = False
        self._backlog.clear()


class EventLoop:
    """Owner of virtual time; a Clock. `now` is in seconds and starts at 0."""

    __slots__ = ("_heap", "_now", "_serial", "handled")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Process | None, Action, Any]] = []
        self._now = 0.0
        self._serial = 0
        self.handled = 0

    def now(self) -> float:
        return self._now

    @property
    def pending(self) -> int:
        """Events that have not happened yet."""
        return len(self._heap)

    def at(self, when: float, process: Process | None, action: Action, argument: Any = None) -> None:
        """Call `action(argument)` at `when` (at once if that is past) on behalf of `process`; None is the world, which neither dies nor pauses."""
        self._serial += 1
        heapq.heappush(self._heap, (max(self._now, when), self._serial, process, action, argument))

    def after(self, delay: float, process: Process | None, action: Action, argument: Any = None) -> None:
        """`at`, `delay` seconds from now."""
        self._serial += 1
        heapq.heappush(self._heap, (self._now + delay, self._serial, process, action, argument))

    def key(self, sender: int) -> int:
        """Where the next message of `sender` stands among the messages of one time; `sender` is a number below 2**17."""
        self._serial += 1
        return _FIRST + (sender << _SENDER) + self._serial

    def deliver(self, when: float, key: int, action: Action, message: Any) -> None:
        """Call `action(message)` at `when`, which is not past; `key` is of this loop or of another one with other senders."""
        heapq.heappush(self._heap, (when, key, None, action, message))

    @property
    def next(self) -> float:
        """When the next event is due; infinity if there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def run_until(self, end: float, most: int | None = None) -> bool:
        """Let everything happen that is due by `end`. False if more than `most` events would be needed: time then stands where they stopped."""
        heap, pop = self._heap, heapq.heappop
        budget = float("inf") if most is None else self.handled + most
        while heap and heap[0][0] <= end:
            if self.handled >= budget:
                return False
            self._now, _, process, action, argument = pop(heap)
            self.handled += 1
            if process is None:
                action(argument)
            else:
                process.happen(action, argument)
        self._now = max(self._now, end)
        return True

"""Queue orders: which waiting request is tried next. Chosen by name from `QUEUE_ORDERS`; ties go by arrival."""

from __future__ import annotations

import math
from typing import Protocol

from triptych.runtime.core.request import Request


class QueueOrder(Protocol):
    """Ranks waiting requests; the smallest key is next. A key is computed once, when the request is admitted."""

    def key(self, request: Request) -> tuple[float, ...]: ...


class FirstComeFirstServed:
    """Arrival alone decides: nobody starves."""

    def key(self, request: Request) -> tuple[float, ...]:
        return ()


class ByPriority:
    """Larger `priority` first. A steady flow of urgent work starves the rest, which is what was asked for."""

    def key(self, request: Request) -> tuple[float, ...]:
        return (-request.priority,)


class EarliestDeadline:
    """The least time left first, requests without a deadline last (Liu and Layland 1973)."""

    def key(self, request: Request) -> tuple[float, ...]:
        return (math.inf if request.deadline is None else request.deadline,)


QUEUE_ORDERS: dict[str, type[FirstComeFirstServed | ByPriority | EarliestDeadline]] = {
    "fcfs": FirstComeFirstServed,
    "priority": ByPriority,
    "deadline": EarliestDeadline,
}

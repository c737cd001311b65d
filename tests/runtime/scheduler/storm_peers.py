"""Who takes part in a storm: instances and gateways with the two directions of their connections.

A connection keeps the order of its messages, and loses those on their way when it breaks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tests.runtime.scheduler.fake_instance import FakeInstance
from triptych.runtime.core.control import GatewayNotice, Retire, SchedulerEvent, SetRoles
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import TaskCommand, TaskReport


@dataclass
class Node:
    """An instance with the two directions of its connection."""

    fake: FakeInstance
    inbox: deque[TaskCommand | SetRoles | Retire] = field(default_factory=deque)
    outbox: deque[TaskReport] = field(default_factory=deque)
    hung: bool = False
    connected: bool = True

    def say(self, reports: list[TaskReport]) -> None:
        if self.connected:
            self.outbox.extend(reports)

    def cut(self) -> None:
        self.connected = False
        self.inbox.clear()
        self.outbox.clear()


@dataclass
class Gateway:
    """What a gateway has open: requests by id, at the attempt that it has begun."""

    name: str
    open: dict[str, Request] = field(default_factory=dict)
    inbox: deque[GatewayNotice] = field(default_factory=deque)
    outbox: deque[SchedulerEvent] = field(default_factory=deque)
    connected: bool = False

    def cut(self) -> None:
        self.connected = False
        self.inbox.clear()
        self.outbox.clear()

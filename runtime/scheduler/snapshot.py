"""What the scheduler shows of itself: the cluster for people and tools, and what it still holds for leak checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.runtime.core.instance import InstanceInfo, Load


@dataclass(frozen=True)
class InstanceSnapshot:
    """One live instance. `heartbeat_age` is seconds since its worker's last sign of life; `tasks` are those placed there by this scheduler."""

    info: InstanceInfo
    load: Load
    heartbeat_age: float
    tasks: int


@dataclass(frozen=True)
class ClusterSnapshot:
    """The cluster at one moment."""

    instances: tuple[InstanceSnapshot, ...]
    queued: int
    active: int
    counters: Mapping[str, int]


@dataclass(frozen=True)
class Resources:
    """What the scheduler holds for requests. All zero once every request has ended: anything else is a leak.

    Attributes:
        records: requests known.
        tasks: live tasks of those.
        queued: entries of the waiting queue.
        deadlines: deadline timers.
        assigned: tasks accounted to instances.
    """

    records: int
    tasks: int
    queued: int
    deadlines: int
    assigned: int

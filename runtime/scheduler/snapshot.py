"""What the scheduler shows of itself: the cluster for people and tools, and what it still holds for leak checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.runtime.core.instance import InstanceInfo, Load


@dataclass(frozen=True)
class InstanceSnapshot:
    """One live instance.

    Attributes:
        heartbeat_age: seconds since its worker's last sign of life.
        tasks: those placed there by this scheduler, or taken over.
        state: whether it takes new work: open, full, draining, or away (its worker's stream is broken).
    """

    info: InstanceInfo
    load: Load
    heartbeat_age: float
    tasks: int
    state: str


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
        queued: requests that wait for an instance.
        timers: deadlines and whatever else a request waits for.
        assigned: tasks accounted to instances.
        promised: prompts accounted to instances that will be told to compute them.
        wanting: requests with media that wait for an encode instance.
        unclaimed: tasks that workers hold, of requests that nobody has declared.
    """

    records: int
    tasks: int
    queued: int
    timers: int
    assigned: int
    promised: int
    wanting: int
    unclaimed: int

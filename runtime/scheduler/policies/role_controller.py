"""RoleController: who changes role, and how a shared instance splits its compute. One of the five policy protocols (design.md, One control plane).

A controller observes what the scheduler observes and is asked on every tick; what it decides goes the way that an operator's request would go: a change of
roles is a drain, a share is one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from triptych.runtime.core.control import SchedulerEvent
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load, Role


@dataclass(frozen=True)
class TakeRoles:
    """Let an instance go on with these roles."""

    instance: str
    roles: frozenset[Role]


@dataclass(frozen=True)
class TakeShare:
    """Let a shared instance compute at most so many prompt tokens a step."""

    instance: str
    prefill_tokens: int


Decision = TakeRoles | TakeShare


class Controlled(Protocol):
    """What a controller may know of an instance. `pressure` is 0 when idle and about 1 when full."""

    @property
    def info(self) -> InstanceInfo: ...

    @property
    def load(self) -> Load: ...

    @property
    def pressure(self) -> float: ...


class RoleController(Protocol):
    """Deterministic; time comes from outside."""

    def observe(self, event: SchedulerEvent, now: float) -> None: ...

    def tick(self, now: float, instances: Iterable[Controlled]) -> Iterable[Decision]: ...


class ShareByBacklog:
    """Shares follow the backlog: as many prompt tokens a step as clear what waits within `steps` steps, between `least` and `most`.

    With nothing waiting decode steps are as short as they can be; a burst of prompts takes compute from decoding only as long as it lasts. A share moves only
    when it would change by a quarter or more, at most once every `interval` seconds.
    """

    def __init__(self, *, least: int = 64, most: int = 8192, steps: int = 16, interval: float = 0.25):
        """Raises ConfigError unless 1 <= least <= most, and steps and interval are positive."""
        if not (1 <= least <= most and steps >= 1 and interval > 0):
            raise ConfigError(
                f"shares must satisfy 1 <= least <= most, steps >= 1, interval > 0; got {least}, {most}, {steps}, {interval}"
            )
        self._least, self._most, self._steps, self._interval = least, most, steps, interval
        self._next = 0.0
        self._asked: dict[InstanceRef, int] = {}  # an instance may take less than it was asked to

    def observe(self, event: SchedulerEvent, now: float) -> None:
        """Loads say all that it needs."""

    def tick(self, now: float, instances: Iterable[Controlled]) -> Iterable[Decision]:
        if now < self._next:
            return
        self._next = now + self._interval
        before, self._asked = self._asked, {}
        for one in instances:
            if {Role.PREFILL, Role.DECODE} <= one.info.roles and one.load.share:
                asked = before.get(one.info.ref, one.load.share)
                wanted = min(max(-(-one.load.waiting_tokens // self._steps), self._least), self._most)
                if 4 * abs(wanted - asked) >= asked:
                    yield TakeShare(one.info.ref.id, wanted)
                    asked = wanted
                self._asked[one.info.ref] = asked


ROLE_CONTROLLERS: dict[str, Callable[[], RoleController | None]] = {
    "none": lambda: None,
    "share-by-backlog": ShareByBacklog,
}

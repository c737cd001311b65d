"""When a process that died is started again: soon at first, ever later if it keeps dying, and said clearly when it does. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 0.1  # seconds; a killed process is missed by running requests, and starting one costs more than this
SETTLED = 3.0  # seconds of being ready after which it did not die of its start: waiting longer would only make the outage longer
MOST = 15.0  # seconds; what keeps a process from living (memory, a device, a file) changes in minutes, and each start costs a core
STABLE = 30.0  # seconds of being ready after which a death is a new story
LOOP = 5  # deaths in a row that make a crash loop: four restarts within seconds did not help


@dataclass(frozen=True)
class Restart:
    """What to do about a death.

    Attributes:
        delay: seconds until the process should be started again.
        deaths: how often it has died in a row, without having been ready for STABLE seconds.
        seconds: from the first of these deaths to this one.
    """

    delay: float
    deaths: int
    seconds: float

    @property
    def looping(self) -> bool:
        return self.deaths >= LOOP


@dataclass
class _Row:
    first: float
    deaths: int = 0


class Restarts:
    """The deaths of a deployment's processes, by name."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def died(self, name: str, ready_for: float | None, now: float) -> Restart:
        """A process died `ready_for` seconds after it was ready (None: it never was)."""
        if ready_for is not None and ready_for >= STABLE:
            self._rows.pop(name, None)
        row = self._rows.setdefault(name, _Row(now))
        row.deaths += 1
        settled = ready_for is not None and ready_for >= SETTLED
        doublings = max(0, row.deaths - LOOP) if settled else row.deaths - 1
        return Restart(min(MOST, FIRST * 2**doublings), row.deaths, now - row.first)

"""The loss table: what became of the requests that met each kind of fault, and what of that may not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from triptych.runtime.core.errors import Status
from triptych.tools.trials.faults import Fault
from triptych.tools.trials.load import Outcome

RECOVERY_LIMIT = 120.0  # seconds after which a deployment that is not whole again never will be
MAY_FAIL = {("gateway", Fault.KILL), ("gateway", Fault.PARTITION)}  # the client's own connection is what broke
COLUMNS = (
    "faults",
    "requests",
    "admitted",
    "completed",
    "failed",
    "hung",
    "lost",
    "duplicated",
    "wrong",
    "leaked",
    "recovery",
)


@dataclass
class Event:
    """One fault: to whom, when (time.monotonic), how long until the deployment was whole again (None: never), and what was held after it."""

    role: str
    fault: Fault
    victim: str
    began: float
    recovery: float | None = None
    held: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def ended(self) -> float:
        return self.began + (RECOVERY_LIMIT if self.recovery is None else self.recovery)


@dataclass(frozen=True)
class Row:
    """One line of the loss table. Lost, duplicated and wrong count tokens, leaked counts things held, recovery is the longest, in seconds."""

    role: str
    fault: str
    faults: int
    requests: int
    admitted: int
    completed: int
    failed: int
    hung: int
    lost: int
    duplicated: int
    wrong: int
    leaked: int
    recovery: float


@dataclass
class Report:
    """Everything that happened."""

    events: list[Event] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    restarts: dict[str, float] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """A line for each pair of role and fault that happened, and one for requests that met none."""
        met = [(outcome, met_by(outcome, self.events)) for outcome in self.outcomes]
        pairs = sorted({(event.role, event.fault) for event in self.events})
        found = [_row("-", "none", [], [outcome for outcome, event in met if event is None])]
        for role, fault in pairs:
            events = [event for event in self.events if (event.role, event.fault) == (role, fault)]
            found.append(_row(role, fault, events, [outcome for outcome, event in met if event in events]))
        return found

    @property
    def problems(self) -> list[str]:
        found = []
        for row in self.rows():
            where = f"{row.role} {row.fault}"
            for name in ("hung", "lost", "duplicated", "wrong", "leaked"):
                if count := getattr(row, name):
                    found.append(f"{where}: {count} {name}")
            if row.failed and (row.role, row.fault) not in MAY_FAIL:
                found.append(f"{where}: {row.failed} requests failed")
        found += [
            f"{e.victim} {e.fault}: not whole again after {RECOVERY_LIMIT:g} s"
            for e in self.events
            if e.recovery is None
        ]
        found += [f"{o.spec}: failed ({o.reason}), and so did its retries" for o in self.outcomes if o.retried is False]
        return found

    def table(self) -> str:
        lines = ["".join([f"{'process':<16}{'fault':<12}", *(f"{name:>11}" for name in COLUMNS)])]
        for row in self.rows():
            cells = [
                f"{getattr(row, name):>11.1f}" if name == "recovery" else f"{getattr(row, name):>11}"
                for name in COLUMNS
            ]
            lines.append("".join([f"{row.role:<16}{row.fault:<12}", *cells]))
        again = sum(outcome.attempts > 1 for outcome in self.outcomes)
        lines.append(f"\nrestart, seconds: {', '.join(f'{role} {s:.1f}' for role, s in self.restarts.items())}")
        lines.append(
            f"{len(self.outcomes)} requests, {again} completed after more than one attempt; {len(self.problems)} problems"
        )
        reasons = sorted(
            {
                f"{o.status.name if o.status else 'no end'}: {o.reason}"
                for o in self.outcomes
                if o.status is not Status.OK
            }
        )
        return "\n".join(
            [*lines, *(f"  {problem}" for problem in self.problems), *(f"  reason given: {r}" for r in reasons)]
        )


def met_by(outcome: Outcome, events: Sequence[Event]) -> Event | None:
    """The last fault that was not over when the request began, and had begun before it ended."""
    hits = [event for event in events if event.began <= outcome.ended and outcome.began <= event.ended]
    return hits[-1] if hits else None


def _row(role: str, fault: str, events: Sequence[Event], outcomes: Sequence[Outcome]) -> Row:
    return Row(
        role=role,
        fault=fault,
        faults=len(events),
        requests=len(outcomes),
        admitted=sum(o.admitted for o in outcomes),
        completed=sum(o.status is Status.OK for o in outcomes),
        failed=sum(o.status not in (Status.OK, None) for o in outcomes),
        hung=sum(o.status is None for o in outcomes),
        lost=sum(o.lost for o in outcomes),
        duplicated=sum(o.duplicated for o in outcomes),
        wrong=sum(o.wrong for o in outcomes),
        leaked=sum(sum(what.values()) or 1 for event in events for what in event.held.values()),
        recovery=max((event.ended - event.began for event in events), default=0.0),
    )

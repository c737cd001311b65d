"""What the scheduler counts. Nothing unusual happens without a number here going up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from triptych.runtime.core.errors import Status


class Count(StrEnum):
    """Names of the counters; besides these, `failed_<status>` counts admitted requests by the status they failed with.

    At every moment submitted = admitted + refused, and admitted + declared = completed + all failed_* + requests still open.
    """

    SUBMITTED = "submitted"
    REFUSED = "refused"
    ADMITTED = "admitted"
    COMPLETED = "completed"
    DECLARED = "declared"  # requests that a gateway had open and this scheduler did not know (any more)
    ADOPTED = "adopted"  # of these, the ones whose running task was found
    INTERRUPTED = "interrupted"
    RESUMED = "resumed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    PATIENCE_EXHAUSTED = "patience_exhausted"
    STALE_RESUMES = "stale_resumes"  # under an attempt that is over
    REQUEUED = "requeued"
    RESERVATIONS_REFUSED = "reservations_refused"
    PREFILLS_REFUSED = "prefills_refused"
    LOCALS_REFUSED = "locals_refused"
    ENCODES_STARTED = "encodes_started"  # encode tasks
    ENCODES_REFUSED = "encodes_refused"
    ITEMS_WANTED = "items_wanted"  # media whose embeddings prefill had not got, each time that it said so
    ITEMS_KNOWN = "items_known"  # of these, the ones sent where they had been encoded before
    STALE_REPORTS = "stale_reports"  # from an epoch or worker that no longer exists
    ORPHAN_REPORTS = "orphan_reports"  # about a task that this scheduler did not start
    PROTOCOL_VIOLATIONS = "protocol_violations"
    WORKERS_JOINED = "workers_joined"
    WORKERS_LOST = "workers_lost"
    WORKERS_BACK = "workers_back"  # after a broken stream, with what they held
    HELD_ABORTED = "held_aborted"  # tasks that a worker declared and nobody claimed
    WORKERS_DROPPED = "workers_dropped"  # refused at registration, or silent for too long
    INSTANCES_RESET = "instances_reset"
    GATEWAYS_LOST = "gateways_lost"
    DRAINS = "drains"


class Counters:
    """Counters that only grow."""

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()

    def __getitem__(self, name: Count | str) -> int:
        return self._values[str(name)]

    def add(self, name: Count, by: int = 1) -> None:
        self._values[name] += by

    def add_failed(self, status: Status) -> None:
        self._values[f"failed_{status.name.lower()}"] += 1

    @property
    def failed(self) -> int:
        """Admitted requests that failed, whatever the status."""
        return sum(n for name, n in self._values.items() if name.startswith("failed_"))

    def values(self) -> Mapping[str, int]:
        """Every counter by name, those at zero included."""
        return {str(name): count for name, count in (dict.fromkeys(Count, 0) | self._values).items()}

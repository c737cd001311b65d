"""Gateways come and go, and say what they have open.

A gateway whose stream broke has `gateway_grace` to come back; meanwhile its requests go on. When it is back it declares every request that it has
open: what it does not declare has no client any more. A request that the scheduler does not know (it was restarted, or the request had ended while
the gateway was away) is taken as admitted: it has been, once.
"""

from __future__ import annotations

from collections.abc import Iterable

from triptych.runtime.core.control import Failed, Resume, ToGateway
from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Request, SampleState
from triptych.runtime.scheduler.adoption import Adoption
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.counters import Count, Counters
from triptych.runtime.scheduler.ledger import Due, Ledger
from triptych.runtime.scheduler.lifecycle import Lifecycle, Out
from triptych.runtime.scheduler.media_flow import MediaFlow
from triptych.runtime.scheduler.policies.queue_order import QueueOrder
from triptych.runtime.scheduler.state import Phase, Record


class Gateways:
    """What gateways say of themselves and of requests that were admitted before."""

    def __init__(
        self,
        config: SchedulerConfig,
        order: QueueOrder,
        ledger: Ledger,
        life: Lifecycle,
        media: MediaFlow,
        adoption: Adoption,
        counters: Counters,
    ):
        self._config = config
        self._order = order
        self._ledger = ledger
        self._life = life
        self._media = media
        self._adoption = adoption
        self._counters = counters

    # ---- their lives

    def joined(self, gateway: str, out: Out) -> None:
        """A gateway is here (again): what it does not declare soon has no client."""
        self._ledger.connected[gateway] = None
        self._await_claims(self._ledger.gateways.setdefault(gateway, {}), out.now)

    def lost(self, gateway: str, out: Out) -> None:
        """A gateway's stream broke; it may be back soon."""
        if gateway not in self._ledger.connected:
            return
        self._counters.add(Count.GATEWAYS_LOST)
        self._disconnect(gateway)
        self._await_claims(self._ledger.gateways.get(gateway, ()), out.now)

    def left(self, gateway: str, out: Out) -> None:
        """A gateway said good-bye: end its requests; nobody is left to be told."""
        if gateway in self._ledger.connected:
            self._disconnect(gateway)
        for request in list(self._ledger.gateways.get(gateway, ())):
            self._life.abandon(self._ledger.records[request], f"gateway {gateway} left", out)

    def _disconnect(self, gateway: str) -> None:
        del self._ledger.connected[gateway]
        if not self._ledger.gateways[gateway]:
            del self._ledger.gateways[gateway]

    def _await_claims(self, requests: Iterable[str], now: float) -> None:
        for request in requests:
            if self._ledger.records[request].phase is not Phase.ENDING:
                self._ledger.timers[Due.CLAIM].put(request, now + self._config.gateway_grace)

    # ---- their requests

    def expects(self, request: Request) -> bool:
        """Whether `request` is one that its gateway should declare: then a Submit of it is a Declare (it cannot know what had arrived)."""
        record = self._ledger.records.get(request.id)
        return record is not None and _same_owner(record, request) and record.id in self._ledger.timers[Due.CLAIM]

    def declare(self, request: Request, *, unheard: bool, out: Out) -> None:
        """A gateway that is back has `request` open, at its attempt, of which it has heard nothing yet if it is `unheard`."""
        record = self._ledger.records.get(request.id)
        if record is None:
            if self._may_open(request, out):
                record = self._open(request, Phase.ADOPTING, out.now)
                self._adoption.declared(record, out)
                if unheard and not record.tasks:
                    self._life.interrupt(record, Status.UNAVAILABLE, "it may never have reached a scheduler", out)
        elif not _same_owner(record, request):
            self._refuse(request, _TAKEN, out)
        elif record.phase is not Phase.ENDING:
            self._ledger.timers[Due.CLAIM].discard(record.id)
            self._compare(record, request.attempt, out)
        elif self._revive(record, out):
            record.highest = max(record.highest, request.attempt)
            self._life.interrupt(record, Status.UNAVAILABLE, "it was being ended, because its gateway was away", out)

    def _compare(self, record: Record, attempt: int, out: Out) -> None:
        """The gateway is at `attempt` of a live record; make good what the old stream did not deliver."""
        self._media.remind(record, out)
        if record.answer is not None and attempt == record.answer.request.attempt:
            return
        if record.phase is Phase.INTERRUPTED and attempt < record.highest:
            self._life.ask(record, "what ran it was lost while its gateway was away", out)
        elif record.phase is Phase.INTERRUPTED or attempt != record.request.attempt:  # its Resume was lost
            reason = f"its gateway is at attempt {attempt}, the scheduler at {record.request.attempt}"
            record.highest = max(record.highest, attempt)
            self._life.interrupt(record, Status.UNAVAILABLE, reason, out)

    def resume(self, request: Request, samples: tuple[SampleState, ...], out: Out) -> None:
        """A gateway goes on with `request` under its attempt, asked or not."""
        record = self._ledger.records.get(request.id)
        wrong = _difference(request, samples)
        if record is not None and not _same_owner(record, request):
            self._refuse(request, _TAKEN, out)
        elif record is not None and _is_stale(record, request.attempt):
            self._counters.add(Count.STALE_RESUMES)
        elif (
            record is not None
            and record.phase is Phase.ENDING
            and not self._revive(record, out)
            or record is None
            and not self._may_open(request, out)
        ):
            pass
        else:
            if record is None:
                record = self._open(request, Phase.INTERRUPTED, out.now)
                self._adoption.disown(record.id, out)
            self._ledger.timers[Due.CLAIM].discard(record.id)
            if wrong is None:
                self._life.answered(record, Resume(request, samples), out)
            else:
                self._life.fail(record, Status.INVALID_ARGUMENT, wrong, out)

    # ---- records

    def _may_open(self, request: Request, out: Out) -> bool:
        """Whether a request that is not known can go on; if not, its gateway hears why."""
        if request.gateway not in self._ledger.connected:
            return False
        if request.deadline is None or out.now < request.deadline:
            return True
        self._adoption.disown(request.id, out)
        reason = "the deadline had passed before the request was declared"
        out.append(ToGateway(request.gateway, Failed(request.id, Status.DEADLINE_EXCEEDED, reason)))
        return False

    def _open(self, request: Request, phase: Phase, now: float) -> Record:
        self._counters.add(Count.DECLARED)
        record = Record(request, self._ledger.next_arrival(), now, self._order.key(request), phase)
        self._ledger.add(record)
        return record

    def _revive(self, record: Record, out: Out) -> bool:
        """Open a record that is ENDING again if that was for its gateway's sake; else repeat what its gateway may not have heard."""
        if record.failure is None:
            self._life.reopen(record)
            return True
        self._life.notify(record, record.failure, out)
        return False

    def _refuse(self, request: Request, reason: str, out: Out) -> None:
        out.append(ToGateway(request.gateway, Failed(request.id, Status.INVALID_ARGUMENT, reason)))


_TAKEN = "another gateway has a request of this id; ids must be unique"


def _same_owner(record: Record, request: Request) -> bool:
    return record.request.gateway == request.gateway


def _is_stale(record: Record, attempt: int) -> bool:
    """Whether `attempt` of a Resume is over, or has been resumed already."""
    if record.phase is Phase.ENDING:
        return attempt <= record.request.attempt
    if record.phase is Phase.INTERRUPTED and record.answer is None:
        return attempt < record.highest
    return attempt <= record.highest


def _difference(request: Request, samples: tuple[SampleState, ...]) -> str | None:
    """How `samples` differ from what a Resume must name; None if they do not."""
    named, expected = [sample.sample for sample in samples], list(range(request.sampling.n))
    return (
        None
        if named in ([], expected)
        else f"Resume names samples {named}; expected {expected}, or none if nothing was seen"
    )

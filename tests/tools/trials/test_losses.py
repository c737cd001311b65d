"""The loss table: each request counts for the fault it met, and everything that may not happen is a problem."""

from __future__ import annotations

from dataclasses import replace

from triptych.runtime.core.errors import Status
from triptych.tools.trials.faults import Fault
from triptych.tools.trials.load import Outcome
from triptych.tools.trials.losses import Event, Report, met_by

FIRST = Event("decode", Fault.KILL, "decode-0", began=10.0, recovery=5.0)
SECOND = Event("gateway", Fault.KILL, "gateway", began=30.0, recovery=2.0)
FINE = Outcome("greedy", 1.0, 2.0, Status.OK, admitted=True)


def at(began: float, ended: float, outcome: Outcome = FINE) -> Outcome:
    return replace(outcome, began=began, ended=ended)


def test_a_request_counts_for_the_last_fault_that_it_met() -> None:
    events = [FIRST, SECOND]
    assert met_by(at(1, 9.9), events) is None and met_by(at(15.1, 29), events) is None
    assert met_by(at(1, 10), events) is FIRST and met_by(at(14.9, 20), events) is FIRST
    assert met_by(at(12, 31), events) is SECOND


def test_rows_add_up() -> None:
    failed = Outcome("seeded", 30.5, 31.0, Status.UNAVAILABLE, "gone", admitted=True, retried=True)
    report = Report([FIRST, SECOND], [FINE, at(11, 12), at(11, 13), failed])
    rows = {(row.role, row.fault): row for row in report.rows()}
    assert rows["-", "none"].completed == 1 and rows["decode", Fault.KILL].completed == 2
    gateway = rows["gateway", Fault.KILL]
    assert (gateway.requests, gateway.admitted, gateway.completed, gateway.failed) == (1, 1, 0, 1)
    assert rows["decode", Fault.KILL].recovery == 5.0
    assert report.problems == [], "a client whose gateway was killed may see an error"
    assert "reason given: UNAVAILABLE: gone" in report.table()


def test_everything_that_may_not_happen_is_a_problem() -> None:
    failed = Outcome("seeded", 11.0, 12.0, Status.INTERNAL, "oops", retried=False)
    hung = Outcome("seeded", 11.0, 80.0, None, "no end")
    bad = replace(FINE, began=11.0, ended=12.0, lost=2, duplicated=1, wrong=3)
    never = Event("prefill", Fault.FREEZE, "prefill-0", began=200.0, held={"prefill-0": {"tasks": 4}})
    problems = Report([FIRST, never], [failed, hung, bad]).problems
    assert problems == [
        "decode kill: 1 hung",
        "decode kill: 2 lost",
        "decode kill: 1 duplicated",
        "decode kill: 3 wrong",
        "decode kill: 1 requests failed",
        "prefill freeze: 4 leaked",
        "prefill-0 freeze: not whole again after 120 s",
        "seeded: failed (oops), and so did its retries",
    ]

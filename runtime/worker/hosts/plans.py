"""StepPlans as messages and back: what a follower needs to run the same step on its own engine.

Rows travel in columns: a step of hundreds of sequences is a few lists of numbers, not hundreds of messages. Exports stay with the leader, which gathers by
calls of their own. Media and draft models are not served over several hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TypeVar

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import EngineError
from triptych.runtime.instance.columns import columns_of, draws_of
from triptych.runtime.instance.plan import Draw, Row, Seat, StepPlan
from triptych.runtime.wire.convert import decode, encode

T = TypeVar("T")

_NUMBERS = ("sequence", "start", "position", "token_slot", "score_top")
_LISTS = ("tokens", "pages", "score")
_MEDIA = ("embedded", "attended")


def write_plan(plan: StepPlan, message: hosts_pb2.StepPlan) -> None:
    """Fill an empty message. Raises EngineError for a plan with media, or with work of a draft model."""
    if plan.drafts or plan.catch_ups:
        raise EngineError(f"plan {plan.id} has a draft model guess, which an instance over several hosts does not take")
    message.id = plan.id
    _write_rows(plan, message.rows)
    message.seats.extend(encode(seat, hosts_pb2.Seat, 0.0) for seat in plan.seats)
    message.copies.extend(chain.from_iterable(plan.copies))


def read_plan(message: hosts_pb2.StepPlan) -> StepPlan:
    """What the leader runs, without exports."""
    copies = iter(message.copies)
    return StepPlan(
        message.id,
        rows=_read_rows(message.rows),
        seats=tuple(decode(seat, Seat, 0.0) for seat in message.seats),
        copies=tuple(zip(copies, copies, strict=True)),
    )


def _write_rows(plan: StepPlan, message: hosts_pb2.PlanRows) -> None:
    columns = columns_of(plan.rows) if plan.rows else {}
    if plan.encodes or any(any(columns.get(name, ())) for name in _MEDIA):
        raise EngineError(f"plan {plan.id} has media, which an instance over several hosts does not take")
    for name in _NUMBERS:
        # Rows that are kept in columns have no `score_top`: nothing of them is scored.
        getattr(message, name).extend(columns.get(name) or [0] * len(plan.rows))
    for name in _LISTS:
        lists = getattr(message, name)
        lists.values.extend(list(chain.from_iterable(columns.get(name, ()))))
        lists.counts.extend(map(len, columns.get(name, ())))
    draws = draws_of(plan.rows)
    message.draws.values.extend(draws.slots)
    message.draws.counts.extend(draws.counts)
    message.draw_positions.extend(draws.positions)


def _read_rows(message: hosts_pb2.PlanRows) -> tuple[Row, ...]:
    drawn = list(map(Draw, message.draws.values, message.draw_positions))
    columns = {
        **{name: getattr(message, name) for name in _NUMBERS},
        **{name: _cut(getattr(message, name).values[:], getattr(message, name).counts) for name in _LISTS},
        **{name: [()] * len(message.sequence) for name in _MEDIA},
        "guess": [0] * len(message.sequence),
        "draws": _cut(drawn, message.draws.counts),
    }
    return tuple(map(Row._make, zip(*(columns[name] for name in Row._fields), strict=True)))


def _cut(values: Sequence[T], counts: Sequence[int]) -> list[tuple[T, ...]]:
    ends = list(accumulate(counts))
    return [tuple(values[end - count : end]) for end, count in zip(ends, counts, strict=True)]

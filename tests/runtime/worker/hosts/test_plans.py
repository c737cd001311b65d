"""A follower runs the plan that its leader runs."""

from __future__ import annotations

from dataclasses import fields

import pytest

from triptych.proto.v1 import hosts_pb2
from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.instance.columns import DecodeRows
from triptych.runtime.instance.plan import Attended, Draft, Draw, Embedded, Encode, Export, Row, Seat, StepPlan
from triptych.runtime.worker.hosts.plans import read_plan, write_plan

ROWS = (
    Row(5, (1, 2, 3), 0, 0, (4, 7), draws=(Draw(1, 3), Draw(2, 3)), score=(4, 5, 6), score_top=2),
    Row(2**40, (), 4, 9, (3,), token_slot=2, draws=(Draw(2, 10),)),
    Row(7, (8,), 16, 16, (3, 5)),
)
SEAT = Seat(
    1,
    2,
    SamplingParams(seed=2**64 - 1, temperature=0.3, logit_bias=((3, -1.5),), logprobs=0, frequency_penalty=0.1),
    prompt=(1, 2),
    outputs=(3,),
    forbidden=(7, 8),
    forbidden_until=30,
    forbidden_first=(9,),
    first=3,
)


def sent(plan: StepPlan) -> StepPlan:
    """As it comes out on the other side."""
    message = hosts_pb2.StepPlan()
    write_plan(plan, message)
    return read_plan(hosts_pb2.StepPlan.FromString(message.SerializeToString()))


@pytest.mark.parametrize(
    "plan",
    [
        StepPlan(3, rows=ROWS, seats=(SEAT,), copies=((1, 2), (3, 4))),
        StepPlan(4, rows=DecodeRows([1, 2], [(), (9,)], [3, 4], [5, 6], [(1, 2), (5,)], [0, 1], [(), ()])),
        StepPlan(5, seats=(SEAT, SEAT)),
        StepPlan(6),
    ],
    ids=["every kind of row", "rows in columns", "seats alone", "nothing"],
)
def test_a_plan_arrives_as_it_was(plan: StepPlan) -> None:
    assert sent(plan) == plan


def test_exports_stay_with_the_leader_who_gathers_by_calls_of_their_own() -> None:
    assert sent(StepPlan(1, rows=ROWS, exports=(Export(1, 0, (2,), True),))) == StepPlan(1, rows=ROWS)


def test_no_field_of_a_plan_is_lost_in_silence() -> None:
    """Whoever adds one has to say how it travels (runtime/worker/hosts/plans.py)."""
    assert {field.name for field in fields(StepPlan)} == {
        "id", "rows", "seats", "copies", "exports", "encodes", "drafts", "catch_ups"
    }  # fmt: skip
    carried = {field.name for field in hosts_pb2.PlanRows.DESCRIPTOR.fields} - {"draw_positions"}
    assert set(Row._fields) == carried | {"embedded", "attended", "guess"}
    assert {field.name for field in fields(Seat)} == set(hosts_pb2.Seat.DESCRIPTOR.fields_by_name)


def test_draft_models_are_refused() -> None:
    for plan in (
        StepPlan(1, catch_ups=(Row(1, (1,), 0, 0, (1,)),)),
        StepPlan(1, drafts=(Draft(0, (1, 2), 0, 0, (1,), 1),)),
    ):
        with pytest.raises(EngineError, match="plan 1 has a draft model guess"):
            write_plan(plan, hosts_pb2.StepPlan())


@pytest.mark.parametrize(
    "plan",
    [
        StepPlan(1, rows=(Row(1, (1,), 0, 0, (1,), embedded=(Embedded(0, 1, 0, (1,)),)),)),
        StepPlan(1, rows=(Row(1, (1,), 0, 0, (1,), attended=(Attended(1, (1,)),)),)),
        StepPlan(1, encodes=(Encode("a", 1, 1, (1,)),)),
    ],
    ids=["embedded", "attended", "encoded"],
)
def test_media_are_refused(plan: StepPlan) -> None:
    with pytest.raises(EngineError, match="plan 1 has media"):
        write_plan(plan, hosts_pb2.StepPlan())

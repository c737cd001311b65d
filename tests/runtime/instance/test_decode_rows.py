"""Samples that decode, all at once, are what they are one by one: the same plans, the same messages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtime.instance.cluster import Node, config, request
from tests.runtime.instance.fake_device import FakeDevice
from triptych.runtime.core.errors import Status
from triptych.runtime.core.tasks import AbortTask, StartLocal, TaskEnded
from triptych.runtime.instance.columns import DecodeRows, DrawnRows
from triptych.runtime.instance.messages import Report
from triptych.runtime.instance.plan import StepPlan, StepResult
from triptych.runtime.instance.planner import PlanBuilder
from triptych.runtime.instance.results import ResultMismatchError
from triptych.runtime.instance.speculation import NO_GUESSES
from triptych.runtime.instance.tasks import Stream


def one_by_one(builder: PlanBuilder, streams: list[Stream]) -> None:
    for stream in streams:
        builder.verify(stream, NO_GUESSES)


def in_columns(device: FakeDevice, plan: StepPlan) -> StepResult:
    result = execute(device, plan)
    drawn = [draw for row in result.rows for draw in row.drawn]
    if not isinstance(plan.rows, DecodeRows) or any(draw.logprobs for draw in drawn):
        return result
    rows = DrawnRows(plan.rows.sequences, [draw.slot for draw in drawn], [draw.token for draw in drawn])
    assert rows == result.rows
    return StepResult(plan.id, rows)


execute = FakeDevice.execute


def serve(num_pages: int) -> tuple[list[Any], list[Any]]:
    """(what the core said, the rows of each plan) with more requests than there is room for; one is aborted with two plans in flight."""
    node = Node(config(num_pages=num_pages, max_waiting=20))
    for index in range(14):
        params: dict[str, Any] = {"max_tokens": 3 + 2 * index, "n": 1 + index % 2, "ignore_eos": index % 3 > 0}
        params |= {"logprobs": 1} if index == 4 else {"stop": ("<3>",)} if index == 5 else {}
        node.command(StartLocal(request(f"r{index % 9}{index}", 2 + index, **params)))
    for _ in range(9):
        node.ready()
        if len(node.results) == 2:
            node.done()
    node.command(AbortTask("r44", Status.CANCELLED, "gone"))
    node.run()
    assert node.core.resources().idle
    return node.messages, [(plan.id, tuple(plan.rows), plan.seats, plan.copies) for plan in node.device.plans]


@pytest.mark.parametrize("num_pages", [64, 20])
def test_all_at_once_is_one_by_one(num_pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    together = serve(num_pages)
    preempted = [m.report.preemptions for m in together[0] if isinstance(m, Report) and isinstance(m.report, TaskEnded)]
    assert any(preempted) == (num_pages == 20)
    with monkeypatch.context() as patch:
        patch.setattr(FakeDevice, "execute", in_columns)
        assert serve(num_pages) == together
    monkeypatch.setattr(PlanBuilder, "decode", one_by_one)
    assert serve(num_pages) == together


def test_columns_of_other_sequences_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(device: FakeDevice, plan: StepPlan) -> StepResult:
        rows = in_columns(device, plan).rows
        if isinstance(rows, DrawnRows):
            rows = DrawnRows([number + 1 for number in rows.sequences], rows.slots, rows.tokens)
        return StepResult(plan.id, rows)

    monkeypatch.setattr(FakeDevice, "execute", others)
    node = Node(config())
    node.command(StartLocal(request("a")))
    with pytest.raises(ResultMismatchError, match="got 1 of 2"):
        node.run()

"""The open-loop runner and the A/B turns, against clients with known behaviour."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from triptych.runtime.core.errors import InvalidRequestError, OverloadedError
from triptych.tools.bench.client import Received
from triptych.tools.bench.compare import interleave, ratios
from triptych.tools.bench.metrics import Arrival, Record, summarise
from triptych.tools.bench.report import as_json, ratio_table, table
from triptych.tools.bench.runner import run, send, warm_up
from triptych.tools.bench.workload import Item

FIRST, GAP = 0.05, 0.02
SLACK = 10.0  # because tests run on any machine, beside anything


class SteadyClient:
    """First token after FIRST seconds, then one every GAP seconds; a text prompt that is a status name fails with it."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    async def stream(self, item: Item) -> AsyncIterator[Received]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if item.prompt == "overloaded":
                raise OverloadedError("queue is full", retry_after=1.0)
            if item.prompt == "empty":
                return
            yield Received(0, prompt_tokens=5)
            await asyncio.sleep(FIRST)
            for index in range(item.output_tokens):
                if index:
                    await asyncio.sleep(GAP)
                yield Received(1)
        finally:
            self.running -= 1

    async def close(self) -> None:
        pass


def items(*times: float, prompt: tuple[int, ...] | str = (1, 2, 3), output: int = 3) -> list[Item]:
    return [Item(t, prompt, output, True) for t in times]


def test_measured_latencies_are_those_of_the_client():
    records = asyncio.run(run(SteadyClient(), items(0.0, 0.01, 0.02)))
    for r in records:
        assert r.ok and r.output_tokens == 3 and r.input_tokens == 5
        assert r.ttft is not None and FIRST <= r.ttft < FIRST + SLACK
        assert r.tpot is not None and GAP * 0.9 <= r.tpot < GAP + SLACK
        assert len(r.itl) == 2


def test_items_are_sent_when_due_and_not_after_each_other():
    client = SteadyClient()
    records = asyncio.run(run(client, items(*[0.001 * i for i in range(10)], output=10)))
    assert client.most == 10
    assert all(r.sent >= r.scheduled for r in records)


def test_failures_are_records_with_their_status():
    async def both() -> tuple[Record, Record]:
        client = SteadyClient()
        failed = await send(client, items(0.0, prompt="overloaded")[0], 0.0)
        empty = await send(client, items(0.0, prompt="empty")[0], 0.0)
        return failed, empty

    failed, empty = asyncio.run(both())
    assert (failed.status, failed.reason, failed.ttft) == ("RESOURCE_EXHAUSTED", "queue is full", None)
    assert (empty.status, empty.ok) == ("EMPTY", False)


def test_a_failing_warm_up_stops_the_benchmark():
    class Broken(SteadyClient):
        async def stream(self, item: Item) -> AsyncIterator[Received]:
            raise InvalidRequestError("no such model")
            yield Received(0)

    with pytest.raises(InvalidRequestError):
        asyncio.run(warm_up(Broken(), items(0.0)))


def test_progress_is_told_after_each_request():
    seen: list[tuple[int, int]] = []
    asyncio.run(run(SteadyClient(), items(0.0, 0.0, output=1), lambda done, total: seen.append((done, total))))
    assert seen == [(1, 2), (2, 2)]


def test_sides_take_turns_and_never_overlap():
    order: list[str] = []

    def side(name: str):
        async def go() -> list[Record]:
            order.append(f"{name}+")
            await asyncio.sleep(0)
            order.append(f"{name}-")
            return [Record(0.0, 0.0, 1.0, (Arrival(1.0, 1),), 1)]

        return go

    a, b = asyncio.run(interleave(side("a"), side("b"), 3))
    assert order == ["a+", "a-", "b+", "b-", "b+", "b-", "a+", "a-", "a+", "a-", "b+", "b-"]
    assert (len(a), len(b)) == (3, 3)


def test_reports_show_latencies_failures_goodput_and_ratios():
    good = Record(0.0, 0.0, 0.3, (Arrival(0.1, 1), Arrival(0.3, 1)), 4)
    bad = Record(0.0, 0.1, 0.2, (), 4, "UNAVAILABLE", "gone")
    summary = summarise([good, bad], {"ttft": 0.2})
    text = table(summary)
    assert "requests 2, completed 1, failed 1" in text
    assert "failed with UNAVAILABLE: 1" in text
    assert "50.0% of requests met TTFT <= 0.2 s" in text
    assert "100 ms late" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("TTFT")] == ["100.00"]
    compared = ratios([summary], [summary])
    assert "1.000 .. 1.000" in ratio_table(compared, "a:1", "b:2")
    loaded = json.loads(as_json({"rate": 1.0}, {"A": (summary, [good, bad])}, compared))
    assert loaded["runs"]["A"]["requests"][1] == {
        "sent": 0.1, "ttft": None, "tpot": None, "e2e": None, "input_tokens": 4, "output_tokens": 0, "status": "UNAVAILABLE", "reason": "gone",
    }  # fmt: skip
    assert loaded["ratios"][0]["name"] == "TTFT p50"

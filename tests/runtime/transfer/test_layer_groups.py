"""KV in offers of some layers each: how many is a pure choice, and whatever the cut, a pull gets all of it or ends with a reason."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.runtime.transfer.harness import (
    BY_LAYER,
    FINAL,
    HEADS,
    PATIENCE,
    SOURCE,
    TARGET,
    WHOLE,
    Pair,
    header_for,
    pair,
)
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.header import part_bytes
from triptych.runtime.transfer.layer_groups import KvTimes, cut_layers, fit_link, smallest_hidden_group
from triptych.runtime.transfer.pull import PullLimits
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.faulty import Fault, FaultSchedule, FaultyTransport

# A layer computes in 10 ms and its KV travels in 2 ms.
TIMES = KvTimes(layer_seconds=0.010, handshake_seconds=0.020, layer_bytes=2e6, bytes_per_second=1e9)
GROUPED = {"groups": BY_LAYER}
# For an offer that never arrives; the others must arrive within that time, on a busy machine, too.
QUICK = {**GROUPED, "limits": PullLimits(fetch_seconds=2, idle_seconds=20, release_seconds=5)}


@pytest.mark.parametrize(
    ("handshake", "layers"),
    [(0.0, 1), (0.0079, 1), (0.0081, 2), (0.020, 3), (0.0239, 3), (0.079, 10), (0.2319, 29), (0.2321, 30), (9.0, 30)],
)
def test_the_smallest_group_is_chosen_that_computes_as_long_as_its_offer_takes(handshake: float, layers: int) -> None:
    times = replace(TIMES, handshake_seconds=handshake)
    assert smallest_hidden_group(times, 30) == layers
    if layers < 30:
        assert times.compute_seconds(layers) >= times.offer_seconds(layers)
    if layers > 1:
        assert times.compute_seconds(layers - 1) < times.offer_seconds(layers - 1)


def test_a_link_slower_than_compute_hides_nothing_and_gets_all_layers_at_once() -> None:
    assert smallest_hidden_group(replace(TIMES, bytes_per_second=1e8), 30) == 30


@pytest.mark.parametrize("name", ["layer_seconds", "layer_bytes", "bytes_per_second", "handshake_seconds"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_times_that_cannot_be_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(TIMES, **{name: value})


def test_a_link_is_fitted_to_offers_of_two_sizes() -> None:
    handshake, rate = fit_link((1e6, 0.011), (3e7, 0.040))
    assert (handshake, rate) == pytest.approx((0.010, 1e9))
    assert fit_link((1e6, 0.020), (3e7, 0.020)) == (0.020, 1.5e9), "size costs nothing"
    assert fit_link((1e7, 0.001), (2e7, 0.010))[0] == 0.0, "no hand-shake takes less than no time"
    with pytest.raises(ConfigError, match="two sizes"):
        fit_link((1e6, 0.1), (1e6, 0.2))


def test_layers_are_cut_in_order_and_each_once() -> None:
    assert cut_layers(5, 2) == ((0, 2), (2, 4), (4, 5))
    assert cut_layers(5, 5) == cut_layers(5, 9) == ((0, 5),)
    with pytest.raises(ConfigError, match="0 layers"):
        cut_layers(5, 0)


def export_by_group(t: Pair, *groups: int) -> None:
    for group in groups:
        t.p.producer.export(7, 0, SOURCE, group)


@pytest.mark.parametrize("kind", list(TransportKind))
@pytest.mark.parametrize(("p", "d"), [(1, 4), (4, 2)])
def test_groups_are_offered_as_they_are_computed(kind, p, d):
    async def scenario() -> None:
        async with pair(kind, {**GROUPED, "tp": p}, {**GROUPED, "tp": d}) as t:
            t.stage()
            t.pull(TARGET)
            export_by_group(t, 0)
            one_group = 3 * part_bytes(t.p.header, 0)  # three granules
            async with asyncio.timeout(PATIENCE):
                while t.p.producer.stats.released_bytes < one_group:
                    await asyncio.sleep(0.01)
            content = t.expected_content()
            assert t.d.page_bytes()[0].tobytes() == content[0].tobytes(), "the first layer is there before the second"
            export_by_group(t, 1)
            t.p.producer.complete(7, FINAL)
            await t.ended()
            t.assert_pulled()
            await t.settled()
            stats = t.p.producer.stats
            assert stats.released_bytes == stats.offered_bytes == 2 * one_group

    asyncio.run(scenario())


def test_what_is_staged_never_exceeds_the_limit_by_more_than_one_group():
    async def scenario() -> None:
        one = part_bytes(header_for(HEADS, "float32", BY_LAYER), 0)
        async with pair(TransportKind.GRPC, {**GROUPED, "staging_limit": one}, GROUPED) as t:
            t.stage_everything()
            t.pull(TARGET)
            await t.ended()
            t.assert_pulled()
            assert t.p.peak_staged == one

    asyncio.run(scenario())


class Nth(FaultSchedule):
    """One fault, at the fetch number `at`."""

    def __init__(self, at: int, fault: Fault):
        super().__init__(0, {})
        self._at, self._fault = at, fault

    def draw(self) -> Fault | None:
        self.drawn.append(self._fault if len(self.drawn) == self._at else None)
        return self.drawn[-1]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.DROP, Status.UNAVAILABLE),
        (Fault.CORRUPT, Status.DATA_LOSS),
        (Fault.HALF_CLOSE, Status.UNAVAILABLE),
        (Fault.DELAY, Status.OK),
    ],
)
def test_one_groups_offer_that_is_lost_ends_the_pull_and_another_pull_gets_all(fault, status):
    """Three granules of two groups: the fourth fetch is the second group's first."""
    schedule = Nth(3, fault)

    def wrap(inner: Transport) -> Transport:
        return FaultyTransport(inner, schedule)

    async def scenario() -> None:
        async with pair(TransportKind.GRPC, GROUPED, QUICK if fault is Fault.DROP else GROUPED, wrap=wrap) as t:
            t.stage_everything()
            t.pull(TARGET)
            outcome = await t.ended()
            assert fault in schedule.drawn
            if status is not Status.OK:
                assert [s for _, s, _ in outcome.failed] == [status]
                await t.settled()
                outcome.failed.clear()
                t.stage_everything(key=8)
                t.pull(TARGET, key=8)
                await t.ended()
            t.assert_pulled()
            await t.settled()

    asyncio.run(scenario())


def test_a_group_that_was_never_offered_is_missed():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL, GROUPED, GROUPED) as t:
            t.stage()
            t.pull(TARGET)
            export_by_group(t, 1)
            t.p.producer.complete(7, FINAL)
            outcome = await t.ended()
            ((_, status, reason),) = outcome.failed
            assert status is Status.UNAVAILABLE and "after 5 of 10 pages" in reason
            await t.settled()

    asyncio.run(scenario())


def test_a_peer_with_another_cut_is_refused_by_name():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL, GROUPED, {"groups": WHOLE}) as t:
            t.stage_everything()
            t.pull(TARGET)
            outcome = await t.ended()
            ((_, status, reason),) = outcome.failed
            assert status is Status.FAILED_PRECONDITION
            assert "layer_groups: mine ((0, 1), (1, 2)), theirs ((0, 2),)" in reason

    asyncio.run(scenario())

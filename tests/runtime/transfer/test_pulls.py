"""Pulls between two instances, over every transport: what is pulled is what was computed, and afterwards nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from tests.runtime.transfer.harness import BY_LAYER, FINAL, PAGE_SIZE, PATIENCE, PROMPT_PAGES, SOURCE, TARGET, pair
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import TransportKind

KINDS = list(TransportKind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "d"), [(1, 2), (4, 2), (2, 2)])
def test_pull_fills_the_pages_byte_for_byte(kind, p, d):
    async def scenario() -> None:
        async with pair(kind, {"tp": p, "dtype": "bfloat16"}, {"tp": d, "dtype": "bfloat16"}) as t:
            t.stage_everything()
            t.pull(TARGET)
            await t.ended()
            t.assert_pulled()
            await t.settled()
            stats = t.p.producer.stats
            granules = -(-PROMPT_PAGES // 2)
            moved = (
                granules * 2 * 2 * 2 * PAGE_SIZE * 4 * 8 * 2
            )  # granules, layers, kv, pages, slots, heads, dim, bytes
            assert t.d.outcome.done[0][2].bytes_moved == moved == stats.offered_bytes == stats.released_bytes
            assert t.d.consumer.bytes_received == moved
            assert t.p.released_keys == [7]

    asyncio.run(scenario())


@pytest.mark.parametrize(("heads", "p", "d"), [(3, 1, 2), (3, 2, 1), (2, 1, 4), (2, 4, 2)])
def test_padded_and_replicated_placements_feed_each_other(heads, p, d):
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL, {"tp": p, "heads": heads}, {"tp": d, "heads": heads}) as t:
            t.stage_everything()
            t.pull(TARGET)
            await t.ended()
            t.assert_pulled()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_pull_may_start_before_the_pages_are_computed(kind):
    async def scenario() -> None:
        async with pair(kind) as t:
            t.export(0, *SOURCE[:2])  # the device loop may be ahead of the event loop
            t.stage()
            t.pull(TARGET)
            await asyncio.sleep(0.1)
            assert t.d.outcome.count == 0
            t.export(2, *SOURCE[2:4])
            async with asyncio.timeout(PATIENCE):  # an open stream extends the lease
                while t.p.alive_count <= 2:
                    await asyncio.sleep(0.01)
            t.export(4, *SOURCE[4:])
            t.p.producer.complete(7, FINAL)
            await t.ended()
            t.assert_pulled()
            await t.settled()

    asyncio.run(scenario())


def test_layer_groups_travel_separately():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL, {"groups": BY_LAYER}, {"groups": BY_LAYER, "tp": 2}) as t:
            t.stage_everything()
            t.pull(TARGET)
            await t.ended()
            t.assert_pulled()

    asyncio.run(scenario())


@pytest.mark.parametrize("lacking", [2, 0])
def test_only_lacking_pages_are_pulled(lacking):
    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            source, target = SOURCE[PROMPT_PAGES - lacking :], TARGET[PROMPT_PAGES - lacking :]
            t.stage(first_page=PROMPT_PAGES - lacking)
            t.export(PROMPT_PAGES - lacking, *source)
            t.p.producer.complete(7, FINAL)
            t.pull(target)
            await t.ended()
            t.assert_pulled(source, target)
            assert (t.d.consumer.bytes_received == 0) == (lacking == 0)
            await t.settled()

    asyncio.run(scenario())


def test_staging_never_exceeds_its_limit_and_still_gets_everything_across():
    async def scenario() -> None:
        granule_bytes = 2 * 2 * 2 * PAGE_SIZE * 4 * 8 * 4
        async with pair(TransportKind.GRPC, {"staging_limit": granule_bytes}) as t:
            t.stage_everything()
            assert t.p.producer.stats.staged_bytes == 0, "nothing is gathered before the puller comes"
            t.pull(TARGET)
            await t.ended()
            t.assert_pulled()
            assert t.p.peak_staged == granule_bytes
            await t.settled()

    asyncio.run(scenario())


def test_many_pulls_at_a_time_do_not_mix():
    async def scenario() -> None:
        async with pair(TransportKind.DEVICE, {"tp": 2}) as t:
            for i in range(5):
                t.stage(key=20 + i, first_page=PROMPT_PAGES - 1)
                t.p.producer.export(20 + i, 4, (SOURCE[i],))
                t.p.producer.complete(20 + i, str(i).encode())
                t.pull((TARGET[i],), key=20 + i, request=f"r{i}")
            async with asyncio.timeout(PATIENCE):
                while t.d.outcome.count < 5:
                    await asyncio.sleep(0.01)
            assert {(request, final) for request, final, _ in t.d.outcome.done} == {
                (f"r{i}", str(i).encode()) for i in range(5)
            }
            assert t.d.page_bytes().tobytes() == t.expected_content().tobytes()
            await t.settled()

    asyncio.run(scenario())


def test_late_puller_of_a_failed_staging_hears_the_reason():
    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            t.stage()
            t.export(0, *SOURCE)
            t.p.producer.close(7, Status.UNAVAILABLE, "the lease expired")
            t.pull(TARGET)
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.UNAVAILABLE
            assert "the lease expired" in outcome.failed[0][2]
            assert t.p.producer.stats.staged_bytes == 0

    asyncio.run(scenario())

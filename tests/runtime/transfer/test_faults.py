"""Whatever breaks, a pull ends once, with a reason, in time; no page is written afterwards and no staging byte stays."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.runtime.transfer.harness import FINAL, SOURCE, TARGET, pair
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.pull import PullLimits
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.faulty import Fault, FaultSchedule, FaultyTransport

KINDS = list(TransportKind)
# For what never arrives. Whatever should arrive has the limits of the harness, which a busy machine keeps, too.
QUICK = {"limits": PullLimits(fetch_seconds=0.5, idle_seconds=20, release_seconds=5)}

OUTCOMES = {
    Fault.DROP: Status.UNAVAILABLE,
    Fault.DELAY: Status.OK,
    Fault.CORRUPT: Status.DATA_LOSS,
    Fault.HALF_CLOSE: Status.UNAVAILABLE,
}


def always(fault: Fault, seed: int = 0):
    return lambda inner: FaultyTransport(inner, FaultSchedule.always(fault, seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", OUTCOMES)
def test_each_fault_ends_the_pull_with_its_own_status(kind, fault):
    async def scenario() -> None:
        limits = QUICK if OUTCOMES[fault] is Status.UNAVAILABLE else None
        async with pair(kind, {"tp": 2}, limits, wrap=always(fault)) as t:
            t.stage_everything()
            t.pull(TARGET)
            outcome = await t.ended()
            if OUTCOMES[fault] is Status.OK:
                t.assert_pulled()
            else:
                assert outcome.done == []
                assert [status for _, status, _ in outcome.failed] == [OUTCOMES[fault]]
            await t.settled()
            assert t.p.released_keys == [7]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_fetching_twice_gives_the_same_data_or_a_typed_error(kind):
    async def scenario() -> None:
        limits = QUICK if kind is TransportKind.DEVICE else None  # where the second fetch never ends
        async with pair(kind, {"tp": 2}, limits, wrap=always(Fault.DUPLICATE)) as t:
            t.stage_everything()
            t.pull(TARGET)
            outcome = await t.ended()
            if kind is TransportKind.DEVICE:  # a buffer of the library can be fetched once
                assert outcome.failed[0][1] is Status.UNAVAILABLE
            else:
                t.assert_pulled()
            await t.settled()

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_every_single_flipped_bit_is_caught(seed):
    async def scenario() -> None:
        async with pair(
            TransportKind.LOCAL, {"dtype": "bfloat16"}, {"dtype": "bfloat16"}, wrap=always(Fault.CORRUPT, seed)
        ) as t:
            t.stage_everything()
            t.pull(TARGET)
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.DATA_LOSS
            assert "checksum" in outcome.failed[0][2]

    asyncio.run(scenario())


def test_fault_schedules_repeat_by_their_seed():
    rates = {Fault.DROP: 0.3, Fault.CORRUPT: 0.3}
    first, again, other = FaultSchedule(1, rates), FaultSchedule(1, rates), FaultSchedule(2, rates)
    draws = [[schedule.draw() for _ in range(50)] for schedule in (first, again, other)]
    assert draws[0] == draws[1] != draws[2]
    assert {None, Fault.DROP, Fault.CORRUPT} == set(draws[0])
    with pytest.raises(ValueError, match="at most 1"):
        FaultSchedule(1, {Fault.DROP: 0.7, Fault.DELAY: 0.7})


def test_under_random_faults_every_pull_ends_once_and_nothing_is_left():
    def wrap(inner: Transport) -> Transport:
        return FaultyTransport(inner, FaultSchedule(3, {f: 0.08 for f in Fault}), delay=0.02)

    async def scenario() -> None:
        async with pair(TransportKind.LOCAL, d=QUICK, wrap=wrap) as t:
            source = random.Random(5)
            cancelled = 0
            for i in range(40):
                t.stage_everything(key=100 + i)
                t.pull(TARGET, key=100 + i, request=f"r{i}")
                if i % 10 == 9:  # one that has not ended for certain
                    cancelled += t.d.consumer.cancel(f"r{i}")
                    continue
                await asyncio.sleep(source.random() * 0.02)
                if source.random() < 0.2:
                    cancelled += t.d.consumer.cancel(f"r{i}")
            while t.d.consumer.pulls:
                await asyncio.sleep(0.01)
            await t.settled()
            outcome = t.d.outcome
            assert outcome.count == 40 - cancelled
            assert len({request for request, *_ in outcome.done + outcome.failed}) == outcome.count
            assert outcome.done and outcome.failed and cancelled
            assert sorted(t.p.released_keys) == list(range(100, 140)), (
                "the owner hears of every end, of cancelled ones too"
            )

    asyncio.run(scenario())


def test_deadline_ends_a_pull_whose_owner_never_finishes():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL) as t:
            t.stage()
            t.export(0, *SOURCE[:2])
            t.pull(TARGET, deadline=0.3)
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.DEADLINE_EXCEEDED
            await t.settled()
            assert t.p.released_keys == [7]

    asyncio.run(scenario())


def test_cancelled_pull_writes_nothing_more_and_reports_nothing():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL) as t:
            t.d.held_deliveries = []
            t.stage_everything()
            t.pull(TARGET)
            while len(t.d.held_deliveries) < 3:
                await asyncio.sleep(0.01)
            assert t.d.consumer.cancel("r")
            assert not t.d.consumer.cancel("r")
            for delivery in t.d.held_deliveries:  # they were in the device loop's queue all the time
                t.d.write(delivery)
            await t.settled()
            assert t.d.page_bytes().tobytes() == t.d.logical.tobytes()
            assert t.d.outcome.count == 0
            assert t.p.released_keys == [7]

    asyncio.run(scenario())


def test_a_pull_cancelled_before_it_began_is_told_to_the_owner():
    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            t.stage_everything()
            t.pull(TARGET)
            assert t.d.consumer.cancel("r")
            await t.settled()
            assert t.p.released_keys == [7] and t.d.outcome.count == 0
            assert t.d.page_bytes().tobytes() == t.d.logical.tobytes()

    asyncio.run(scenario())


def test_owner_that_ends_the_staging_tells_the_puller_why():
    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            t.stage()
            t.export(0, *SOURCE[:2])
            t.pull(TARGET)
            while not t.p.producer.stats.offered_bytes:
                await asyncio.sleep(0.01)
            t.p.producer.close(7, Status.RESOURCE_EXHAUSTED, "prefill was aborted")
            outcome = await t.ended()
            assert outcome.failed == [
                ("r", Status.RESOURCE_EXHAUSTED, "the owner ended the staging: prefill was aborted")
            ]
            await t.settled()
            assert t.p.released_keys == [], "the owner ended it by itself"

    asyncio.run(scenario())


@pytest.mark.parametrize("when", ["before the puller comes", "while it pulls"])
def test_an_end_in_good_order_is_no_failure_of_the_pull(when: str) -> None:
    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            t.stage()
            t.export(0, *SOURCE[:2])
            if when == "while it pulls":
                t.pull(TARGET)
                while not t.p.producer.stats.offered_bytes:
                    await asyncio.sleep(0.01)
            t.p.producer.close(7, Status.OK, "every sample ended at its first token")
            if when == "before the puller comes":
                t.pull(TARGET)
            outcome = await t.ended()
            assert [reason.split(": ")[-1] for _, reason in outcome.withdrawn] == [
                "every sample ended at its first token"
            ]
            assert not outcome.failed and not outcome.done
            await t.settled()

    asyncio.run(scenario())


def test_pages_that_cannot_be_gathered_fail_the_pull_and_not_the_owner():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL) as t:
            t.stage()
            t.export(0, 3, 99, 1, 6, 2)
            t.p.producer.complete(7, FINAL)
            t.pull(TARGET)
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.UNAVAILABLE
            assert "could not be gathered" in outcome.failed[0][2]
            await t.settled()
            t.d.outcome.failed.clear()
            t.stage_everything(key=8)
            t.pull(TARGET, key=8)
            await t.ended()
            t.assert_pulled()

    asyncio.run(scenario())


def test_final_record_that_promises_more_than_was_offered_is_an_error():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL) as t:
            t.stage()
            t.export(0, *SOURCE[:4])
            t.p.producer.complete(7, FINAL)
            t.pull(TARGET)
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.UNAVAILABLE
            assert "4 of 5 pages" in outcome.failed[0][2]
            await t.settled()

    asyncio.run(scenario())


def test_server_that_stops_fails_the_pull():
    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            t.stage()
            t.export(0, *SOURCE[:2])
            t.pull(TARGET)
            while not t.d.consumer.bytes_received:
                await asyncio.sleep(0.01)
            await t.p_host.server.stop(None)
            outcome = await t.ended(seconds=20)
            assert outcome.withdrawn or outcome.failed[0][1] is Status.UNAVAILABLE
            await t.settled()

    asyncio.run(scenario())

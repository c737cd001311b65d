"""What does not fit is refused by name, before a byte moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.runtime.transfer.harness import SOURCE, TARGET, WHOLE, Pair, header_for, pair
from triptych.runtime.core.errors import IncompatibleError, InvalidRequestError, Status
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer import producer as producer_module
from triptych.runtime.transfer.header import KvHeader, check

CHANGES: dict[str, Callable[[KvHeader], KvHeader]] = {
    "model": lambda h: replace(h, model="other"),
    "revision": lambda h: replace(h, revision="2"),
    "dtype": lambda h: replace(h, dtype="int32"),
    "page_size": lambda h: replace(h, page_size=8),
    "granule": lambda h: replace(h, granule=4),
    "layer_groups": lambda h: replace(h, layer_groups=((0, 1), (1, 2))),
    "chunk_order": lambda h: replace(h, chunk_order="layer,kv,head,page,slot,dim/1"),
    "protocol": lambda h: replace(h, protocol=2),
    "groups": lambda h: replace(h, groups=(replace(h.groups[0], heads=8, head_dim=4),)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_difference_names_the_field_and_both_values(name):
    mine = header_for(4, "float32", WHOLE)
    theirs = CHANGES[name](mine)
    assert mine.digest() != theirs.digest()
    with pytest.raises(IncompatibleError) as refusal:
        check(mine, theirs)
    assert f"{name}: mine {getattr(mine, name)!r}, theirs {getattr(theirs, name)!r}" in refusal.value.message


def assert_nothing_moved(t: Pair) -> None:
    stats = t.p.producer.stats
    assert (stats.staged_bytes, stats.offered_bytes, t.d.consumer.bytes_received) == (0, 0, 0)
    assert t.d.page_bytes().tobytes() == t.d.logical.tobytes()


@pytest.mark.parametrize("name", CHANGES)
def test_producer_refuses_another_header_before_anything_is_gathered(name):
    async def scenario() -> None:
        async with pair(TransportKind.DEVICE, d={"header": CHANGES[name]}) as t:
            t.stage_everything()
            t.pull(TARGET)
            outcome = await t.ended()
            ((_, status, reason),) = outcome.failed
            assert status is Status.FAILED_PRECONDITION
            assert f"{name}: mine" in reason
            assert_nothing_moved(t)

    asyncio.run(scenario())


def test_consumer_refuses_another_header_even_if_the_producer_does_not(monkeypatch):
    async def scenario() -> None:
        async with pair(TransportKind.DEVICE, d={"header": CHANGES["chunk_order"]}) as t:
            monkeypatch.setattr(producer_module, "check", lambda mine, theirs: None)
            t.stage()  # nothing is exported yet: what is refused is the header alone
            t.pull(TARGET)
            outcome = await t.ended()
            ((_, status, reason),) = outcome.failed
            assert status is Status.FAILED_PRECONDITION
            assert "chunk_order: mine" in reason
            await t.settled()
            assert_nothing_moved(t)

    asyncio.run(scenario())


REFUSED_PULLS = {
    "unknown key": ({"source_key": 8}, Status.UNAVAILABLE, "never staged"),
    "stale epoch": ({"source_epoch": 1}, Status.UNAVAILABLE, "epoch 1 is gone"),
    "unknown instance": ({"source_instance": "Q"}, Status.UNAVAILABLE, "it holds P"),
    "another header digest": ({"source_digest": "00"}, Status.FAILED_PRECONDITION, "another header"),
    "another first page": ({"first_page": 1}, Status.FAILED_PRECONDITION, "staged from 0 on"),
    "dead address": ({"source_address": "127.0.0.1:1"}, Status.UNAVAILABLE, ""),
}


@pytest.mark.parametrize("case", REFUSED_PULLS)
def test_pull_of_what_is_not_there_fails_at_once(case):
    change, status, words = REFUSED_PULLS[case]

    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            t.stage()
            t.pull(TARGET, **change)
            outcome = await t.ended(seconds=20)  # not for want of an answer: that takes 30
            assert outcome.count == 1
            assert outcome.failed[0][1] is status
            assert words in outcome.failed[0][2]
            assert_nothing_moved(t)

    asyncio.run(scenario())


def test_pulling_by_a_transport_that_is_not_served_names_those_that_are():
    async def scenario() -> None:
        async with pair(TransportKind.GRPC) as t:
            t.p.producer._transports = {TransportKind.LOCAL: t.p_host.transports[TransportKind.LOCAL]}
            t.stage()
            t.pull(TARGET)
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.FAILED_PRECONDITION
            assert "it serves local" in outcome.failed[0][2]

    asyncio.run(scenario())


def test_a_key_is_pulled_once():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL) as t:
            t.stage_everything()
            t.d.held_deliveries = []  # keeps the first pull from ending
            t.pull(TARGET)
            while not t.d.held_deliveries:
                await asyncio.sleep(0.01)
            t.pull((7,), request="another", first_page=0)
            outcome = await t.ended()
            assert outcome.failed[0][:2] == ("another", Status.INVALID_ARGUMENT)
            with pytest.raises(InvalidRequestError, match="being pulled already"):
                t.pull(TARGET)
            t.d.reported.clear()
            held, t.d.held_deliveries = t.d.held_deliveries, None
            for delivery in held:
                t.d.write(delivery)
            await t.ended()
            t.d.outcome.failed.clear()
            t.assert_pulled()

    asyncio.run(scenario())


def test_restart_ends_every_staging_and_the_old_epoch_with_it():
    async def scenario() -> None:
        async with pair(TransportKind.LOCAL) as t:
            t.stage()
            t.export(0, *SOURCE[:2])
            t.pull(TARGET)
            while not t.d.consumer.bytes_received:
                await asyncio.sleep(0.01)
            t.p.producer.restart(replace(t.p.ref, epoch=5))
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.UNAVAILABLE
            assert t.p.producer.stats.staged_bytes == 0
            t.d.outcome.failed.clear()
            t.pull(TARGET)
            outcome = await t.ended()
            assert outcome.failed[0][1] is Status.UNAVAILABLE
            assert "epoch 5" in outcome.failed[0][2]

    asyncio.run(scenario())

"""Routers spread work and never pair what cannot work together; queue orders decide who is next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.scheduler.world import Driver, driver, info
from triptych.runtime.core.control import Cancel, Heartbeat, InstanceLoad, WorkerLeft, WorkerLost
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo, Load, Role, TransportKind
from triptych.runtime.core.tasks import Granted, Refused, ReserveDecode, StartLocal, StartPrefill, TaskEnded
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.placement import servable_length, shared_transport
from triptych.runtime.scheduler.policies.queue_order import QUEUE_ORDERS
from triptych.runtime.scheduler.policies.router import ROUTERS, LeastLoaded, RoundRobin


@pytest.mark.parametrize("router", ROUTERS.values())
def test_every_router_spreads_over_pairs_evenly(router) -> None:
    decodes = [info(f"d{i}", "d") for i in range(3)]
    prefills = [info(f"p{i}", "p") for i in range(2)]
    world = driver(*prefills, *decodes, router=router())
    by_name = {i.ref.id: i for i in decodes}
    for n in range(6):
        world.submit(f"r{n}")
        world.report(by_name[world.commands[-1].ref.id], Granted(f"r{n}", 0))
    assert sorted(len(world.sent(ReserveDecode, f"d{i}")) for i in range(3)) == [2, 2, 2]
    assert sorted(len(world.sent(StartPrefill, f"p{i}")) for i in range(2)) == [3, 3]


@pytest.mark.parametrize("router", ROUTERS.values())
def test_every_router_uses_all_kinds_of_instance_in_a_mixed_cluster(router) -> None:
    world = driver(info("p", "p"), info("d", "d"), info("pd", "pd"), router=router())
    for n in range(4):
        world.submit(f"r{n}")
    assert world.sent(StartLocal, "pd") and world.sent(ReserveDecode, "d")
    assert not world.sent(ReserveDecode, "pd")


@pytest.mark.parametrize("router", ROUTERS.values())
def test_every_router_leaves_out_what_is_full_too_short_or_has_refused_for_good(router) -> None:
    small = info("d0", "d", max_model_len=8)
    big = info("d1", "d")
    world = driver(info("p", "p"), small, big, router=router())
    for n in range(3):
        world.submit(f"r{n}", prompt=8)
    assert len(world.sent(ReserveDecode, "d1")) == 3
    world.report(big, Refused("r0", Role.DECODE, "never", permanent=True))
    assert world.terminal("r0") is not None
    world.report(big, Refused("r1", Role.DECODE, "full"))
    assert not world.sent(ReserveDecode, "d0") and world.scheduler.resources().queued == 1


def test_least_loaded_counts_samples_and_prompt_lengths_not_requests() -> None:
    world = driver(info("p", "p"), info("d0", "d"), info("d1", "d"), router=LeastLoaded())
    world.submit("wide", n=4)
    for n in range(3):
        world.submit(f"r{n}")
    assert [c.ref.id for c in world.commands] == ["d0", "d1", "d1", "d1"]


def test_least_loaded_breaks_ties_by_what_instances_report() -> None:
    d0 = info("d0", "d")
    world = driver(info("p", "p"), d0, info("d1", "d"))
    world.send(Heartbeat(d0.worker, (InstanceLoad(d0.ref, Load(running=3, free_pages=9, free_slots=1)),)))
    world.submit("r")
    assert world.commands[-1].ref.id == "d1"


def test_least_loaded_prefers_the_prefill_instance_with_the_better_transport_among_equals() -> None:
    both = (TransportKind.LOCAL, TransportKind.GRPC)
    decode = info("d", "d", transports=both, domain="b")
    world = driver(info("p0", "p", transports=both, domain="a"), info("p1", "p", transports=both, domain="b"), decode)
    for n in range(2):
        world.submit(f"r{n}")
        world.report(decode, Granted(f"r{n}", 0))
    assert [c.ref.id for c in world.commands if isinstance(c.command, StartPrefill)] == ["p1", "p0"]


def test_least_loaded_lets_an_instance_with_both_roles_stand_in_for_a_missing_decode_instance() -> None:
    world = driver(info("p", "p"), info("pd", "pd"))
    world.submit("r0")
    world.submit("r1")
    assert [type(c.command) for c in world.commands] == [StartLocal, ReserveDecode]


def test_round_robin_goes_on_behind_an_instance_that_was_replaced() -> None:
    world = driver(info("p", "p"), *(info(f"d{i}", "d") for i in range(3)), router=RoundRobin())
    world.submit("r0")
    world.submit("r1")
    world.join(info("d1", "d", epoch=2))
    world.submit("r2")
    reserved = [(c.ref.id, c.command.request.id) for c in world.commands if isinstance(c.command, ReserveDecode)]
    assert reserved == [("d0", "r0"), ("d1", "r1"), ("d2", "r1"), ("d0", "r2")]


@pytest.mark.parametrize(
    "order, expected",
    [("fcfs", ["a", "b", "c"]), ("priority", ["b", "c", "a"]), ("deadline", ["c", "a", "b"])],
)
def test_queue_orders_decide_who_is_next(order: str, expected: list[str]) -> None:
    decode = info("d", "d")
    world = driver(info("p", "p"), decode, order=QUEUE_ORDERS[order](), config=SchedulerConfig(max_active=1))
    world.submit("first")
    world.submit("a", deadline=500.0)
    world.submit("b", priority=5)
    world.submit("c", deadline=400.0, priority=2)
    placed = []
    current = "first"
    for _ in range(3):
        world.report(decode, Refused(current, Role.DECODE, "never", permanent=True))
        current = world.sent(ReserveDecode)[-1].request.id
        placed.append(current)
    assert placed == expected


def test_a_request_that_goes_back_to_the_queue_keeps_its_place() -> None:
    decode = info("d", "d")
    world = driver(info("p", "p"), decode)
    world.submit("a")
    world.report(decode, Refused("a", Role.DECODE, "full"))
    world.submit("b")
    world.tick(1.0)
    assert [c.request.id for c in world.sent(ReserveDecode)] == ["a", "a", "b"]


def test_a_request_that_does_not_fit_does_not_block_those_that_run_elsewhere() -> None:
    big, small = info("big", "pd", max_model_len=64), info("small", "pd", max_model_len=8)
    world = driver(big, small)
    world.submit("long", prompt=40)
    world.report(big, Refused("long", Role.PREFILL, "full"))
    world.submit("short", prompt=4)
    assert world.commands[-1].ref.id == "small"


def test_transports_are_shared_by_the_sources_preference_and_local_needs_one_domain() -> None:
    kinds = (TransportKind.LOCAL, TransportKind.DEVICE, TransportKind.GRPC)
    source = info("p", "p", transports=kinds, domain="a")
    assert shared_transport(source, info("d", "d", transports=kinds, domain="a")) is TransportKind.LOCAL
    assert shared_transport(source, info("d", "d", transports=kinds, domain="b")) is TransportKind.DEVICE
    assert shared_transport(source, info("d", "d", transports=(TransportKind.GRPC,))) is TransportKind.GRPC
    assert shared_transport(replace(source, transports=(TransportKind.DEVICE,)), info("d", "d")) is None
    nameless = replace(source, transports=(TransportKind.LOCAL,), domain="")
    assert shared_transport(nameless, replace(nameless, ref=info("d", "d").ref)) is None


def test_the_servable_length_is_that_of_the_best_placement() -> None:
    assert servable_length([]) == 0
    assert servable_length([info("p", "p"), info("e", "e")]) == 0
    assert servable_length([info("p", "p", max_model_len=32), info("d", "d", max_model_len=16)]) == 16
    assert servable_length([info("p", "p", max_model_len=32), info("pd", "pd", max_model_len=24)]) == 24

    def local(name: str, roles: str, domain: str, max_model_len: int = 64) -> InstanceInfo:
        return info(name, roles, transports=(TransportKind.LOCAL,), domain=domain, max_model_len=max_model_len)

    apart = [local("p", "p", "a"), local("d", "d", "b")]
    assert servable_length(apart) == 0
    assert servable_length([*apart, local("d2", "d", "a", max_model_len=9)]) == 9


PREFILLS = [info(f"p{i}", "p") for i in range(4)]
WIDE = info("d", "d")


def chosen(world: Driver) -> list[int]:
    """Prompts that each prefill instance was told to compute."""
    return [len(world.sent(StartPrefill, p.ref.id)) for p in PREFILLS]


def test_a_burst_spreads_over_the_prefill_instances_although_no_reservation_was_granted_yet() -> None:
    world = driver(*PREFILLS, WIDE)
    for n in range(16):
        world.submit(f"r{n}")
        loads = tuple(InstanceLoad(p.ref, Load(running=0, free_pages=63, free_slots=4)) for p in PREFILLS)
        for p, load in zip(PREFILLS, loads, strict=True):
            world.send(Heartbeat(p.worker, (load,)))  # idle, as far as they know
    assert chosen(world) == [0, 0, 0, 0] and world.scheduler.resources().promised == 16
    for n in range(16):
        world.report(WIDE, Granted(f"r{n}", 0))
    assert chosen(world) == [4, 4, 4, 4] and world.scheduler.resources().promised == 0


def test_prompts_that_are_promised_count_by_their_length() -> None:
    world = driver(*PREFILLS[:2], WIDE)
    world.submit("long", prompt=30)
    for n in range(3):
        world.submit(f"r{n}", prompt=10)
    for name in ("long", "r0", "r1", "r2"):
        world.report(WIDE, Granted(name, 0))
    assert [command.request.id for command in world.sent(StartPrefill, "p0")] == ["long"]


@pytest.mark.parametrize("end", ["refused", "cancelled", "decode died", "prefill died", "expired", "interrupted"])
def test_a_promise_ends_with_its_reservation(end: str) -> None:
    world = driver(PREFILLS[0], WIDE)
    world.submit("r", prompt=30)
    match end:
        case "refused":
            world.report(WIDE, Refused("r", Role.DECODE, "full"))
        case "cancelled":
            world.send(Cancel("r", ""))
        case "decode died":
            world.send(WorkerLeft(WIDE.worker, end))
        case "prefill died":
            world.send(WorkerLeft(PREFILLS[0].worker, end))
        case "expired":
            world.report(WIDE, TaskEnded("r", Role.DECODE, Status.DEADLINE_EXCEEDED, "nobody came"))
        case "interrupted":
            world.resume("r", 2, prompt=30)
    assert world.scheduler.resources().promised == 0


def test_a_promise_to_an_instance_that_left_does_not_come_back_with_it() -> None:
    world = driver(PREFILLS[0], WIDE)
    world.submit("r", prompt=30)
    world.send(WorkerLeft(PREFILLS[0].worker, "left"))
    world.join(*PREFILLS[:2])  # under the same epoch
    assert world.scheduler.resources().promised == 0
    world.report(WIDE, Granted("r", 0))
    assert sum(chosen(world)) == 1


def test_a_prompt_whose_instance_closed_meanwhile_counts_where_it_is_started() -> None:
    world = driver(*PREFILLS[:2], WIDE)
    world.submit("r", prompt=30)
    world.submit("s", prompt=30)
    world.send(WorkerLost(PREFILLS[0].worker, "its stream broke"))
    world.report(WIDE, Granted("r", 0))
    assert chosen(world) == [0, 1, 0, 0] and world.scheduler.resources().promised == 1, "that of s, to p1"
    world.report(WIDE, Granted("s", 0))
    assert chosen(world) == [0, 2, 0, 0] and world.scheduler.resources().promised == 0

"""What is refused at once, and with which status, reason and hint."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler.world import driver, info, request
from triptych.runtime.core.control import Cancel, Failed, GatewayJoined, Submit, WorkerLeft, WorkerLost
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.core.tasks import Granted, Refused, ReserveDecode, TaskEnded
from triptych.runtime.scheduler.config import SchedulerConfig

P, D = info("p", "p"), info("d", "d")


def failure(world, name: str, gateway: str = "g") -> Failed:
    found = world.terminal(name, gateway)
    assert isinstance(found, Failed), found
    return found


@pytest.mark.parametrize(
    "members, shortage",
    [
        ((), "no prefill and no decode instance"),
        ((P,), "no decode instance"),
        ((D,), "no prefill instance"),
        ((info("e", "e"),), "no prefill and no decode instance"),
        ((P, info("e", "e")), "no decode instance"),
    ],
)
def test_without_both_roles_a_request_waits_as_long_as_patience_lasts(members, shortage: str) -> None:
    world = driver(*members, config=SchedulerConfig(patience=10.0, heartbeat_timeout=100.0))
    world.submit("r")
    world.tick(9.9)
    assert world.terminal("r") is None and world.scheduler.resources().queued == 1
    world.tick(0.2)
    failed = failure(world, "r")
    assert failed.status is Status.UNAVAILABLE and failed.retry_after == 1.0
    assert failed.reason == f"waited 10 s in vain: {shortage}"
    world.assert_nothing_is_held()


def test_a_deadline_before_the_end_of_patience_is_told_with_what_is_missing() -> None:
    world = driver(P)
    world.submit("r", deadline=101.0)
    world.tick(1.1)
    failed = failure(world, "r")
    assert failed.status is Status.UNAVAILABLE and "deadline" in failed.reason and "no decode instance" in failed.reason
    world.assert_nothing_is_held()


def test_a_request_that_waits_for_the_first_instance_is_served_when_it_comes() -> None:
    world = driver()
    world.submit("r")
    world.submit("s")
    world.tick(5.0)
    world.join(P)
    assert not world.commands
    world.join(D)
    assert [c.request.id for c in world.sent(ReserveDecode)] == ["r", "s"]


def test_the_queue_is_bounded_also_while_nothing_can_be_served() -> None:
    world = driver(config=SchedulerConfig(max_queued=2))
    for name in ("a", "b", "c"):
        world.submit(name)
    assert failure(world, "c").status is Status.RESOURCE_EXHAUSTED


def test_a_request_that_nothing_left_can_hold_waits_beside_the_queue_and_blocks_nobody() -> None:
    big, small = info("big", "pd", max_model_len=64), info("small", "pd", max_model_len=8)
    world = driver(big, small, config=SchedulerConfig(lookahead=1, rejoin_grace=0, heartbeat_timeout=100))
    world.submit("long", prompt=40)
    world.report(big, Refused("long", Role.PREFILL, "full"))
    world.send(WorkerLost(big.worker, "killed"))
    world.submit("short", prompt=4)
    assert world.commands[-1].ref.id == "small"
    world.tick(31.0)
    failed = failure(world, "long")
    assert failed.status is Status.UNAVAILABLE and "no placement for 41 tokens" in failed.reason


def test_without_a_shared_transport_a_request_is_unavailable() -> None:
    world = driver(
        info("p", "p", transports=(TransportKind.DEVICE,)),
        info("d", "d", transports=(TransportKind.GRPC,)),
        config=SchedulerConfig(heartbeat_timeout=100),
    )
    world.submit("r")
    world.tick(31.0)
    failed = failure(world, "r")
    assert failed.status is Status.UNAVAILABLE and "no transport" in failed.reason


def test_a_local_transport_reaches_only_its_own_process() -> None:
    local = (TransportKind.LOCAL,)
    world = driver(info("p", "p", transports=local, domain="a"), info("d", "d", transports=local, domain="b"))
    world.submit("r")
    assert not world.commands
    world.join(info("d2", "d", transports=local, domain="a"))
    assert world.commands[-1].ref.id == "d2"


def test_a_prompt_too_long_for_every_placement_is_invalid() -> None:
    """The pair is as long as its shorter half, an instance with both roles as long as itself."""
    world = driver(info("p", "p", max_model_len=32), info("d", "d", max_model_len=16))
    world.submit("fits", prompt=15)
    assert world.terminal("fits") is None
    world.submit("long", prompt=16)
    assert failure(world, "long").status is Status.INVALID_ARGUMENT and "16 tokens" in failure(world, "long").reason
    world.join(info("pd", "pd", max_model_len=20))
    world.submit("alone", prompt=19)
    assert world.commands[-1].ref.id == "pd"


def test_the_queue_is_bounded_and_the_refusal_carries_a_hint() -> None:
    world = driver(P, D, config=SchedulerConfig(max_queued=2, retry_after=3.0))
    world.submit("a")
    world.report(D, Refused("a", Role.DECODE, "full"))
    world.submit("b")
    assert world.terminal("b") is None
    world.submit("c")
    refused = failure(world, "c")
    assert refused.status is Status.RESOURCE_EXHAUSTED and refused.retry_after == 3.0
    assert world.scheduler.counters["refused"] == 1 and world.scheduler.counters["admitted"] == 2


def test_no_more_than_max_active_requests_are_placed() -> None:
    world = driver(P, D, config=SchedulerConfig(max_active=1))
    world.submit("a")
    world.submit("b")
    assert len(world.commands) == 1
    world.send(Cancel("a", ""))
    assert len(world.commands) == 3, "the abort of a, then the reservation of b"


def test_a_live_id_cannot_be_used_again() -> None:
    world = driver(P, D)
    world.send(GatewayJoined("h"))
    world.submit("r")
    world.submit("r", gateway="h")
    assert failure(world, "r", "h").status is Status.INVALID_ARGUMENT
    assert world.terminal("r") is None, "the running request is untouched"


def test_an_id_that_is_still_being_released_may_be_tried_again() -> None:
    world = driver(P, D)
    world.submit("r")
    world.send(Cancel("r", ""))
    world.notices.clear()
    world.submit("r")
    refused = failure(world, "r")
    assert refused.status is Status.UNAVAILABLE and refused.retry_after is not None
    world.report(D, Granted("r", 0))
    world.report(D, TaskEnded("r", Role.DECODE, Status.CANCELLED))
    world.notices.clear()
    world.submit("r")
    assert world.terminal("r") is None


def test_a_deadline_in_the_past_is_told_at_once() -> None:
    world = driver(P, D)
    world.submit("r", deadline=world.clock.now())
    assert failure(world, "r").status is Status.DEADLINE_EXCEEDED
    assert not world.commands


def test_an_empty_prompt_is_invalid() -> None:
    world = driver(P, D)
    world.submit("r", prompt=0)
    assert failure(world, "r").status is Status.INVALID_ARGUMENT


def test_a_gateway_that_never_joined_is_refused() -> None:
    world = driver(P, D)
    world.send(Submit(request("r", gateway="stranger")))
    assert failure(world, "r", "stranger").status is Status.UNAVAILABLE
    world.assert_nothing_is_held()


def test_waiting_requests_fail_when_the_last_instance_of_a_role_stays_away() -> None:
    world = driver(P, D, config=SchedulerConfig(lookahead=1))
    for name in ("a", "b", "c"):
        world.submit(name)
        world.report(D, Refused(name, Role.DECODE, "full"))
    world.send(WorkerLeft(P.worker, "killed"))
    world.tick(30.1)
    for name in ("a", "b", "c"):
        assert failure(world, name).status is Status.UNAVAILABLE
    world.assert_nothing_is_held()


def test_a_configuration_out_of_range_names_every_wrong_value() -> None:
    with pytest.raises(
        ConfigError, match=r"max_queued is 0.*lease_seconds is -1.*drain_grace is -2.*heartbeat_timeout is 0.6"
    ):
        SchedulerConfig(max_queued=0, lease_seconds=-1, drain_grace=-2, heartbeat_timeout=0.6)

"""What is refused at once, and with which status, reason and hint."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler.world import driver, info, request
from triptych.runtime.core.control import Cancel, Failed, GatewayJoined, Submit, WorkerLost
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.core.tasks import Granted, Refused, TaskEnded
from triptych.runtime.scheduler.config import SchedulerConfig

P, D = info("p", "p"), info("d", "d")


def failure(world, name: str, gateway: str = "g") -> Failed:
    found = world.terminal(name, gateway)
    assert isinstance(found, Failed), found
    return found


@pytest.mark.parametrize("members", [(), (P,), (D,), (info("e", "e"),), (P, info("e", "e"))])
def test_without_both_roles_a_request_is_unavailable(members) -> None:
    world = driver(*members)
    world.submit("r")
    refused = failure(world, "r")
    assert refused.status is Status.UNAVAILABLE and refused.retry_after == 1.0
    world.assert_nothing_is_held()


def test_without_a_shared_transport_a_request_is_unavailable() -> None:
    world = driver(info("p", "p", transports=(TransportKind.DEVICE,)), info("d", "d", transports=(TransportKind.GRPC,)))
    world.submit("r")
    assert failure(world, "r").status is Status.UNAVAILABLE


def test_a_local_transport_reaches_only_its_own_process() -> None:
    local = (TransportKind.LOCAL,)
    world = driver(info("p", "p", transports=local, domain="a"), info("d", "d", transports=local, domain="b"))
    world.submit("r")
    assert failure(world, "r").status is Status.UNAVAILABLE
    world.join(info("d2", "d", transports=local, domain="a"))
    world.submit("s")
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


def test_waiting_requests_fail_when_the_last_instance_of_a_role_goes() -> None:
    world = driver(P, D, config=SchedulerConfig(lookahead=1))
    for name in ("a", "b", "c"):
        world.submit(name)
        world.report(D, Refused(name, Role.DECODE, "full"))
    world.send(WorkerLost(P.worker, "killed"))
    for name in ("a", "b", "c"):
        assert failure(world, name).status is Status.UNAVAILABLE
    world.assert_nothing_is_held()


def test_a_configuration_out_of_range_names_every_wrong_value() -> None:
    with pytest.raises(ConfigError, match=r"max_queued is 0.*lease_seconds is -1.*heartbeat_timeout is 0.6"):
        SchedulerConfig(max_queued=0, lease_seconds=-1, heartbeat_timeout=0.6)

"""Gateways whose streams break, that come back with what they have open, or leave."""

from __future__ import annotations

from tests.runtime.scheduler.world import Driver, driver, info, request
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Declare,
    Failed,
    GatewayJoined,
    GatewayLeft,
    GatewayLost,
    Interrupted,
    Submit,
    WorkerLeft,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.tasks import AbortTask, Accepted, StartLocal, TaskEnded
from triptych.runtime.scheduler.config import SchedulerConfig

PD = info("pd", "pd")


def running() -> Driver:
    world = driver(PD, config=SchedulerConfig(heartbeat_timeout=100))
    world.submit("r")
    world.report(PD, Accepted("r"))
    return world


def ended(status: Status = Status.OK, attempt: int = 1) -> TaskEnded:
    return TaskEnded("r", Role.DECODE, status, attempt=attempt)


def test_a_gateway_that_is_back_and_declares_its_request_has_lost_nothing() -> None:
    world = running()
    world.send(GatewayLost("g"))
    world.tick(4.9)
    world.send(GatewayJoined("g"))
    world.declare("r")
    world.tick(20.0)
    assert not world.told(Interrupted) and not world.now_sent()
    world.join(PD)
    world.report(PD, ended())


def test_a_gateway_that_stays_away_ends_its_requests() -> None:
    world = running()
    world.send(GatewayLost("g"))
    world.tick(4.9)
    assert not world.now_sent()
    world.tick(0.2)
    ((_, command),) = world.now_sent()
    assert isinstance(command, AbortTask) and command.status is Status.CANCELLED
    world.report(PD, ended(Status.CANCELLED))
    assert not world.told(Failed) and world.scheduler.counters["failed_cancelled"] == 1
    world.assert_nothing_is_held()


def test_what_a_gateway_that_is_back_does_not_declare_is_ended() -> None:
    world = running()
    world.submit("s")
    world.send(GatewayLost("g"))
    world.tick(3.0)
    world.send(GatewayJoined("g"))
    world.declare("r")
    world.tick(4.9)
    assert not world.now_sent(), "it has its time from when it is back"
    world.tick(0.2)
    assert [(c.request) for _, c in world.now_sent() if isinstance(c, AbortTask)] == ["s"]


def test_a_gateway_that_joins_over_its_own_stream_declares_too() -> None:
    world = running()
    world.send(GatewayJoined("g"))
    world.tick(5.1)
    assert len(world.sent(AbortTask)) == 1
    world.report(PD, ended(Status.CANCELLED))
    world.assert_nothing_is_held()


def test_a_submit_of_what_should_be_declared_is_a_declaration() -> None:
    """The gateway cannot know whether its Submit had arrived when the stream broke."""
    world = running()
    world.send(GatewayLost("g"))
    world.send(GatewayJoined("g"))
    world.submit("r")
    world.tick(5.1)
    assert world.terminal("r") is None and not world.sent(AbortTask)
    world.submit("r")
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.INVALID_ARGUMENT, "now it is a repetition"


def test_an_interruption_that_a_gateway_missed_is_told_again_under_the_same_attempt() -> None:
    world = running()
    world.send(GatewayLost("g"))
    world.send(WorkerLeft(PD.worker, "gone"))
    assert not world.told(Interrupted)
    world.send(GatewayJoined("g"))
    world.declare("r")
    world.declare("r")
    assert [n.attempt for n in world.told(Interrupted)] == [2, 2]
    world.resume("r", 2, 4)
    assert world.scheduler.resources().queued == 1


def test_a_resume_that_was_lost_is_asked_for_under_a_further_attempt() -> None:
    world = running()
    world.send(WorkerLeft(PD.worker, "gone"))
    world.send(GatewayLost("g"))
    world.send(GatewayJoined("g"))
    world.declare("r", attempt=2)
    assert [n.attempt for n in world.told(Interrupted)] == [2, 3]
    world.resume("r", 3, 4)
    assert world.scheduler.resources().queued == 1


def test_an_unasked_resume_that_was_lost_shows_in_the_declaration() -> None:
    world = running()
    world.send(GatewayLost("g"))
    world.send(GatewayJoined("g"))
    world.declare("r", attempt=2)
    assert [n.attempt for n in world.told(Interrupted)] == [3]
    assert len(world.sent(AbortTask)) == 1
    world.report(PD, ended(Status.UNAVAILABLE))
    world.resume("r", 3, 4)
    assert world.sent(StartLocal)[-1].request.attempt == 3


def test_a_declaration_of_what_is_resumed_already_changes_nothing() -> None:
    world = running()
    world.resume("r", 2, 4)
    world.send(GatewayLost("g"))
    world.send(GatewayJoined("g"))
    world.declare("r", attempt=2)
    assert not world.told(Interrupted)
    world.report(PD, ended(Status.CANCELLED))
    assert world.sent(StartLocal)[-1].request.attempt == 2
    world.declare("r", attempt=2)
    assert not world.told(Interrupted)


def test_a_request_that_completed_while_its_gateway_was_away_is_found_out_by_asking() -> None:
    world = running()
    world.send(GatewayLost("g"))
    world.report(PD, ended())
    world.send(GatewayJoined("g"))
    world.declare("r")
    world.tick(3.1)
    assert [n.attempt for n in world.told(Interrupted)] == [2]
    world.resume("r", 2, -9)
    assert isinstance(world.terminal("r"), Completed)
    counters = world.scheduler.counters
    assert counters["admitted"] + counters["declared"] == counters["completed"] == 2
    world.assert_nothing_is_held()


def test_a_declaration_during_the_release_of_a_failed_request_repeats_the_failure() -> None:
    world = running()
    world.report(PD, TaskEnded("r", Role.DECODE, Status.INTERNAL, "bug"))
    world.submit("s")
    world.send(Cancel("s", "client"))
    world.send(GatewayLost("g"))
    world.send(GatewayJoined("g"))
    first = world.told(Failed)[-1]
    world.declare("s")
    assert world.told(Failed)[-1] == first
    world.report(PD, TaskEnded("s", Role.DECODE, Status.CANCELLED))
    world.assert_nothing_is_held()


def test_a_request_that_is_being_ended_for_its_gateways_absence_is_opened_again() -> None:
    world = running()
    world.send(GatewayLost("g"))
    world.tick(5.1)
    world.send(GatewayJoined("g"))
    world.declare("r")
    assert [n.attempt for n in world.told(Interrupted)] == [2]
    world.resume("r", 2, 4)
    assert len(world.sent(StartLocal)) == 1
    world.join(info("pd", "pd"))
    world.report(PD, ended(Status.CANCELLED))
    assert world.sent(StartLocal)[-1].request.attempt == 2
    world.report(PD, Accepted("r", attempt=2))
    world.report(PD, ended(attempt=2))
    assert isinstance(world.terminal("r"), Completed)
    counters = world.scheduler.counters
    assert counters["admitted"] + counters["declared"] == counters["completed"] + counters.failed == 2
    world.assert_nothing_is_held()


def test_a_gateway_may_leave_while_it_is_taken_for_lost() -> None:
    world = running()
    world.send(GatewayLost("g"))
    world.send(GatewayLeft("g"))
    assert len(world.sent(AbortTask)) == 1
    world.report(PD, ended(Status.CANCELLED))
    world.assert_nothing_is_held()
    world.send(GatewayLost("g"))
    world.send(GatewayLeft("nobody"))


def test_requests_of_a_gateway_are_refused_after_it_is_lost() -> None:
    world = driver(PD)
    world.send(GatewayLost("g"))
    world.send(Submit(request("r")))
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.UNAVAILABLE
    world.send(Declare(request("r")))
    world.assert_nothing_is_held()


def test_a_declared_request_whose_deadline_has_passed_hears_so() -> None:
    world = driver(PD)
    world.declare("r", deadline=world.clock.now())
    failure = world.terminal("r")
    assert isinstance(failure, Failed) and failure.status is Status.DEADLINE_EXCEEDED
    world.assert_nothing_is_held()


def test_an_id_of_another_gateway_is_refused() -> None:
    world = running()
    world.send(GatewayJoined("h"))
    world.declare("r", gateway="h")
    world.resume("r", 2, 0, gateway="h")
    refused = world.told(Failed, "h")
    assert [f.status for f in refused] == [Status.INVALID_ARGUMENT] * 2 and not world.sent(AbortTask)

"""A worker that loses its scheduler goes on, says what it holds when it is back, and neither loses nor invents the end of a task."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import request
from tests.runtime.instance.fake_device import expected_outputs
from tests.runtime.scheduler.live import eventually
from tests.runtime.worker.rig import INFO, registered
from tests.runtime.worker.test_control_client import WELCOME, ToyScheduler
from triptych.proto.v1 import control_pb2
from triptych.runtime.core.control import Retire, SetRoles
from triptych.runtime.core.errors import EngineError, Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.tasks import AbortTask, HeldTask, StartLocal, StartPrefill, TaskEnded
from triptych.runtime.wire.convert import decode
from triptych.runtime.worker import membership


def _held(joined: control_pb2.WorkerJoined) -> list[HeldTask]:
    return [decode(held, HeldTask, 0.0) for held in joined.held]


async def _again(scheduler: ToyScheduler) -> None:
    """The stream breaks, and the worker registers again."""
    before = len(scheduler.of("worker_joined"))
    scheduler.down.put_nowait(None)
    scheduler.down.put_nowait(WELCOME)
    await eventually(lambda: len(scheduler.of("worker_joined")) > before)


def test_what_runs_goes_on_without_a_scheduler_and_is_declared_to_the_next() -> None:
    async def scenario() -> None:
        async with registered(seconds=0.01) as (scheduler, (rig,)):
            await eventually(lambda: bool(scheduler.of("worker_joined")))
            req = replace(request("r", 5, max_tokens=50), attempt=3)
            scheduler.send(INFO.ref, StartLocal(req))
            scheduler.send(INFO.ref, StartPrefill(request("p", 5), 0, 60.0))
            await eventually(lambda: len(rig.tokens) > 3)
            rig.engine.seconds = 0.25  # so that it still runs then, however long that takes
            await _again(scheduler)
            rig.engine.seconds = 0.01
            told = _held(scheduler.of("worker_joined")[1])
            assert told == [
                HeldTask(INFO.ref, "r", 3, None, "gw", True),
                HeldTask(INFO.ref, "p", 1, Role.PREFILL, "gw", False),
            ]
            await eventually(lambda: rig.reports[-1][1] == TaskEnded("r", Role.DECODE, Status.OK, attempt=3))
            tokens = [token.token for token in rig.tokens if token.request == "r"]
            assert tokens == expected_outputs(req, 64)[0]
            await eventually(lambda: scheduler.of("reported")[-1].report.task_ended.request == "r")
            scheduler.send(INFO.ref, AbortTask("p", Status.CANCELLED, "nobody declares it", Role.PREFILL, 1))
            await eventually(lambda: rig.idle)

    asyncio.run(scenario())


@pytest.mark.limit(120)
def test_no_task_ends_unheard_and_none_is_declared_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream breaks while many short tasks begin and end: what is declared ends on the new stream, all of it and nothing else."""

    monkeypatch.setattr(membership, "RETRY_FIRST", 0.005)
    monkeypatch.setattr(membership, "RETRY_MOST", 0.005)

    async def scenario() -> None:
        async with registered(seconds=0.002) as (scheduler, (rig,)):
            await eventually(lambda: bool(scheduler.of("worker_joined")))
            declared = turn = 0
            while turn < 12 or declared <= 10:
                if turn >= 12:  # a busy machine: streams come back more slowly than tasks end
                    rig.engine.seconds = 0.02
                names = [f"r{turn}.{n}" for n in range(8)]
                for n, name in enumerate(names):
                    scheduler.send(INFO.ref, StartLocal(request(name, 5, max_tokens=5 + 2 * n)))
                await eventually(lambda names=names: any(t.request in names for t in rig.tokens))
                await asyncio.sleep(turn % 12 * 0.002)
                await _again(scheduler)
                joined = max(at for at, m in enumerate(scheduler.heard) if m.WhichOneof("kind") == "worker_joined")
                held = {task.request for task in _held(scheduler.heard[joined].worker_joined)}
                declared += len(held)
                await eventually(lambda: rig.idle)
                await eventually(lambda joined=joined, held=held: _ended(scheduler, joined) >= held)
                await asyncio.sleep(0.02)
                assert _ended(scheduler, joined) == held
                turn += 1

    asyncio.run(scenario())


def _ended(scheduler: ToyScheduler, since: int) -> set[str]:
    """Requests whose end was told, each once, after the message at `since`."""
    reports = [m.reported.report for m in scheduler.heard[since:] if m.WhichOneof("kind") == "reported"]
    ends = [report.task_ended.request for report in reports if report.WhichOneof("kind") == "task_ended"]
    assert len(ends) == len(set(ends))
    return set(ends)


def test_an_engine_failure_between_declaration_and_stream_is_told_on_the_stream() -> None:
    async def scenario() -> None:
        async with registered() as (scheduler, (rig,)):
            await eventually(lambda: bool(scheduler.of("worker_joined")))
            scheduler.down.put_nowait(None)  # no welcome yet: the next registration waits
            await eventually(lambda: len(scheduler.of("worker_joined")) == 2)

            def broken() -> None:
                raise EngineError("the device is gone")

            rig.live._loop.call(broken)
            await eventually(lambda: bool(rig.resets))
            scheduler.down.put_nowait(WELCOME)
            await eventually(lambda: bool(scheduler.of("instance_reset")))
            (reset,) = scheduler.of("instance_reset")
            assert reset.old.epoch == scheduler.of("worker_joined")[1].instances[0].ref.epoch == INFO.ref.epoch
            assert reset.info.ref.epoch == rig.resets[0].ref.epoch == rig.core.ref.epoch

    asyncio.run(scenario())


def test_tasks_are_abandoned_when_no_scheduler_comes_back() -> None:
    async def scenario() -> None:
        async with registered(seconds=0.1, orphan_seconds=0.3) as (scheduler, (rig,)):
            await eventually(lambda: bool(scheduler.of("worker_joined")))
            scheduler.send(INFO.ref, StartLocal(request("r", 5, max_tokens=None)))
            scheduler.send(INFO.ref, StartPrefill(request("p", 5), 0, 60.0))
            await eventually(lambda: len(rig.tokens) > 1)
            scheduler.down.put_nowait(None)
            await eventually(lambda: sum(isinstance(report, TaskEnded) for _, report in rig.reports) == 2)
            ends = {report.request: report for _, report in rig.reports if isinstance(report, TaskEnded)}
            assert ends.keys() == {"r", "p"}
            assert all(
                end.status is Status.UNAVAILABLE and "no scheduler for 0.3 s" in end.reason for end in ends.values()
            )
            assert rig.core.ref == INFO.ref, "the pool lives, and so does the epoch"

    asyncio.run(scenario())


def test_roles_are_switched_and_refused_on_the_schedulers_word() -> None:
    async def scenario() -> None:
        async with registered() as (scheduler, _):
            await eventually(lambda: bool(scheduler.of("worker_joined")))
            scheduler.send(INFO.ref, StartPrefill(request("p", 5), 0, 60.0))
            scheduler.order(SetRoles(INFO.ref, frozenset({Role.DECODE})))
            await eventually(lambda: bool(scheduler.of("roles_refused")))
            assert "holds 1 task" in scheduler.of("roles_refused")[0].reason
            scheduler.send(INFO.ref, AbortTask("p", Status.CANCELLED, "drained"))
            scheduler.order(SetRoles(INFO.ref, frozenset({Role.ENCODE})))
            scheduler.order(SetRoles(INFO.ref, frozenset({Role.DECODE})))
            await eventually(lambda: bool(scheduler.of("instance_reset")))
            assert "encode" in scheduler.of("roles_refused")[1].reason
            (reset,) = scheduler.of("instance_reset")
            assert (reset.old.epoch, list(reset.info.roles)) == (INFO.ref.epoch, ["decode"])
            assert list(reset.info.switchable) == ["prefill"] and reset.info.ref.epoch != INFO.ref.epoch
            assert "in " in reset.reason and "ms" in reset.reason
            new = InstanceRef("i", reset.info.ref.epoch)
            scheduler.send(new, StartLocal(request("r", 5)))
            await eventually(lambda: scheduler.of("reported")[-1].report.WhichOneof("kind") == "refused")

    asyncio.run(scenario())


def test_a_retired_instance_is_gone_and_the_others_go_on() -> None:
    async def scenario() -> None:
        other = replace(INFO, ref=InstanceRef("j", 5))
        async with registered(instances=(INFO, other)) as (scheduler, rigs):
            await eventually(lambda: bool(scheduler.of("worker_joined")))
            scheduler.order(Retire(INFO.ref, "maintenance"))
            await eventually(lambda: bool(scheduler.of("instance_left")))
            (left,) = scheduler.of("instance_left")
            assert (left.worker, left.ref.id, left.reason) == ("w", "i", "maintenance")
            await _again(scheduler)
            assert [info.ref.id for info in scheduler.of("worker_joined")[-1].instances] == ["j"]
            scheduler.send(other.ref, StartLocal(request("r", 5)))
            await eventually(lambda: any(isinstance(report, TaskEnded) for _, report in rigs[0].reports))

    asyncio.run(scenario())

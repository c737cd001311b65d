"""Workers register, fall silent, come back as somebody else; gateways always know who is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.scheduler.world import COMPATIBLE, driver, info
from triptych.runtime.core.control import (
    Directory,
    Heartbeat,
    InstanceLoad,
    InstanceReset,
    Interrupted,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
)
from triptych.runtime.core.instance import InstanceRef, Load, Role
from triptych.runtime.core.tasks import Granted, Refused, ReserveDecode
from triptych.runtime.scheduler.config import SchedulerConfig

P, D = info("p", "p"), info("d", "d")
TIMEOUT = SchedulerConfig().heartbeat_timeout


def names(directory: Directory) -> list[str]:
    return [i.ref.id for i in directory.instances]


def test_every_change_of_membership_is_told_to_every_gateway() -> None:
    world = driver(P)
    world.join(D)
    world.send(WorkerLeft(P.worker, "stopped"))
    world.send(InstanceReset(D.worker, D.ref, info("d", "d", epoch=2), "pool lost"))
    told = world.told(Directory)
    assert [names(d) for d in told] == [[], ["p"], ["p", "d"], ["d"], ["d"]]
    assert told[-1].instances[0].ref.epoch == 2


def test_a_silent_worker_is_dropped_and_its_requests_are_interrupted() -> None:
    world = driver(P, D)
    world.submit("r")
    world.report(D, Granted("r", 0))
    elapsed = 0.0
    while not world.drops:
        world.send(Heartbeat(P.worker))
        world.tick(0.5)
        elapsed += 0.5
        assert elapsed < 2 * TIMEOUT
    assert elapsed == TIMEOUT
    assert [d.worker for d in world.drops] == [D.worker] and "no heartbeat for 5.0 s" in world.drops[0].reason
    (notice,) = world.told(Interrupted)
    assert notice.attempt == 2 and "instance d was lost" in notice.reason
    world.send(WorkerLost(D.worker, "stream ended"))  # the shell closed it
    assert world.scheduler.counters["workers_lost"] == 1


def test_reports_count_as_signs_of_life() -> None:
    world = driver(P, D)
    for _ in range(15):
        world.report(D, Granted("ghost", 0))
        world.send(Heartbeat(P.worker))
        world.tick(0.5)
    assert not world.drops


def test_a_scheduler_that_was_asleep_itself_gives_workers_time_to_be_heard() -> None:
    world = driver(P, D)
    world.tick()
    world.tick(60.0)
    assert not world.drops
    world.send(Heartbeat(P.worker))
    for _ in range(6):
        world.tick(0.5)
    assert [d.worker for d in world.drops] == [D.worker]


def test_an_incompatible_worker_is_dropped_with_the_difference_and_nobody_else_notices() -> None:
    world = driver(P, D)
    other = info("x", "d", compatibility=replace(COMPATIBLE, kv_dtype="bfloat16", page_size=8))
    world.join(other)
    (drop,) = world.drops
    assert drop.worker == other.worker
    assert (
        "instance x" in drop.reason
        and "kv_dtype: 'bfloat16' != 'float32'" in drop.reason
        and "page_size: 8 != 4" in drop.reason
    )
    assert names(world.told(Directory)[-1]) == ["p", "d"]


def test_an_emptied_cluster_may_serve_something_else() -> None:
    world = driver(P)
    world.send(WorkerLeft(P.worker, "left"))
    other = info("x", "pd", compatibility=replace(COMPATIBLE, model="other"))
    world.join(other)
    assert not world.drops
    world.submit("r")
    assert world.commands[-1].ref == other.ref


@pytest.mark.parametrize(
    "infos, complaint",
    [
        ((), "registers no instance"),
        ((info("x", "d", worker="w", epoch=0),), "epoch 0"),
        ((info("x", "d", worker="v"),), "belongs to worker 'v'"),
        ((info("x", "d", worker="w"), info("x", "p", worker="w")), "two instances under one name"),
        ((replace(info("x", "d", worker="w"), roles=frozenset()),), "no role"),
        (
            (info("x", "d", worker="w"), info("y", "p", worker="w", compatibility=replace(COMPATIBLE, revision="r2"))),
            "instance y does not fit the cluster (x): revision",
        ),
    ],
)
def test_a_registration_that_makes_no_sense_is_dropped_with_a_reason(infos, complaint: str) -> None:
    world = driver()
    world.send(WorkerJoined("w", infos))
    (drop,) = world.drops
    assert complaint in drop.reason
    assert not world.scheduler.snapshot(world.clock.now()).instances
    assert len(world.told(Directory)) == 1


def test_a_worker_that_registers_again_starts_afresh() -> None:
    world = driver(P, D)
    world.submit("r")
    world.report(D, Granted("r", 0))
    world.join(info("d", "d", epoch=2))
    assert [notice.attempt for notice in world.told(Interrupted)] == [2]
    assert not world.drops
    world.report(D, Granted("r", 0))
    assert world.scheduler.counters["stale_reports"] == 1
    world.submit("s")
    assert world.commands[-1].ref.epoch == 2


def test_an_instance_that_moves_to_another_worker_replaces_the_old_one() -> None:
    pair = (info("d", "d", worker="old"), info("d2", "d", worker="old"))
    world = driver(P, *pair)
    world.join(info("d", "d", worker="new", epoch=2))
    assert not world.drops, "the old worker has another instance"
    world.join(info("d2", "d", worker="new2", epoch=2))
    assert [d.worker for d in world.drops] == ["old"]
    assert sorted(names(world.told(Directory)[-1])) == ["d", "d2", "p"]
    world.send(Heartbeat("old"))
    assert world.scheduler.counters["stale_reports"] == 1


def test_a_reset_to_something_incompatible_drops_the_worker() -> None:
    world = driver(P, D)
    wrong = info("d", "d", epoch=2, compatibility=replace(COMPATIBLE, kv_layout="v2"))
    world.send(InstanceReset(D.worker, D.ref, wrong, "pool lost"))
    (drop,) = world.drops
    assert "kv_layout" in drop.reason
    assert names(world.told(Directory)[-1]) == ["p"]


def test_stale_resets_and_loads_are_counted_and_change_nothing() -> None:
    world = driver(P, D)
    stale = InstanceRef("d", 99)
    world.send(InstanceReset(D.worker, stale, info("d", "d", epoch=3), "late"))
    world.send(Heartbeat(D.worker, (InstanceLoad(stale, Load(running=9)),)))
    world.send(Heartbeat(P.worker, (InstanceLoad(D.ref, Load(running=9)),)))
    assert world.scheduler.counters["stale_reports"] == 3
    assert [i.load.running for i in world.scheduler.snapshot(world.clock.now()).instances] == [0, 0]


def test_a_heartbeat_that_shows_room_reopens_a_full_instance_and_one_that_shows_none_does_not() -> None:
    world = driver(P, D)
    world.submit("r")
    world.report(D, Refused("r", Role.DECODE, "full"))
    world.send(Heartbeat(D.worker, (InstanceLoad(D.ref, Load(free_pages=0, free_slots=2)),)))
    assert len(world.sent(ReserveDecode)) == 1
    world.send(Heartbeat(D.worker, (InstanceLoad(D.ref, Load(free_pages=5, free_slots=2)),)))
    assert len(world.sent(ReserveDecode)) == 2


def test_the_snapshot_shows_loads_ages_tasks_and_counters() -> None:
    world = driver(P, D)
    world.submit("r")
    world.clock.advance(2.0)
    world.send(Heartbeat(D.worker, (InstanceLoad(D.ref, Load(running=3)),)))
    shown = world.scheduler.snapshot(world.clock.now())
    ages = {i.info.ref.id: (i.heartbeat_age, i.tasks, i.load.running) for i in shown.instances}
    assert ages == {"p": (2.0, 0, 0), "d": (0.0, 1, 3)}
    assert (shown.queued, shown.active) == (0, 1)
    assert shown.counters["submitted"] == 1 and shown.counters["completed"] == 0

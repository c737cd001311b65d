"""The index of encode instances stays what sorting all of them would give; hashes are remembered up to a bound."""

from __future__ import annotations

import random

from tests.runtime.scheduler.world import image, info
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.scheduler.affinity import Affinity
from triptych.runtime.scheduler.cluster import Cluster, Member, Obstacle
from triptych.runtime.scheduler.encoders import encodes
from triptych.runtime.scheduler.tasks import encode_task


def cluster(*infos: InstanceInfo) -> tuple[Cluster, list[Member]]:
    made = Cluster()
    members = []
    for one in infos:
        made.add_worker(one.worker)
        members.append(made.add(one, one.worker))
    return made, members


def names(made: Cluster) -> list[str]:
    return [member.ref.id for member in made.encoders.by_load()]


def test_instances_that_encode_are_in_the_index_whatever_else_they_do() -> None:
    made, _ = cluster(
        info("e", "e", max_patches=9),
        info("epd", "epd", max_patches=9),
        info("none", "e"),
        info("p", "p", max_patches=9),
    )
    assert names(made) == ["e", "epd"]


def test_the_index_follows_every_change() -> None:
    dice = random.Random(3)
    made, members = cluster(*(info(f"e{i}", "e", max_patches=dice.choice([50, 100])) for i in range(7)))
    tasks = []
    full: set[str] = set()
    for step in range(600):
        member = dice.choice(members)
        match dice.randrange(8):
            case 0:
                made.block(member, dice.choice([Obstacle.AWAY, Obstacle.DRAINING, Obstacle.FULL]))
            case 1:
                made.unblock(member, dice.choice([Obstacle.AWAY, Obstacle.DRAINING, Obstacle.FULL]))
            case 2:
                made.encoders.close(member, 1.0)
                full.add(member.ref.id)
            case 3:
                made.encoders.room(member)
                full.discard(member.ref.id)
            case 4 if tasks:
                owner, name, task = tasks.pop(dice.randrange(len(tasks)))
                made.release_encode(owner, name, task)
                full.discard(owner.ref.id)
            case 5 if tasks:
                owner, _, task = dice.choice(tasks)
                made.encoded(owner, task)
            case 6:
                made.report_load(member, Load(encoding=dice.randrange(3)))
            case _:
                task = encode_task(member.ref)
                made.assign_encode(member, f"r{step}", task)
                made.also_encode(member, task, 0, image("x", patches=dice.randrange(1, 40)))
                tasks.append((member, f"r{step}", task))
        away = {Obstacle.AWAY, Obstacle.DRAINING}
        open_ = [m for m in members if not (away & m.obstacles) and m.ref.id not in full]
        wanted = sorted(open_, key=lambda m: (m.patches / m.info.capacity.max_patches, m.load.encoding, m.ref.id))
        assert names(made) == [m.ref.id for m in wanted] and len(made.encoders) == len(wanted)
        assert [m for m in members if made.encoders.is_open(m)] == open_
    for owner, name, task in tasks:
        made.release_encode(owner, name, task)
    assert all(member.patches == 0 for member in members)


def test_who_waits_hears_of_less_load_of_room_and_of_newcomers() -> None:
    made, (one,) = cluster(info("e", "e", max_patches=9))

    def changed() -> bool:
        was, made.encoders.changed = made.encoders.changed, False
        return was

    assert changed()
    task = encode_task(one.ref)
    made.assign_encode(one, "r", task)
    made.also_encode(one, task, 0, image("x", patches=5))
    assert not changed(), "more load helps nobody"
    made.encoded(one, task)
    assert changed()
    made.release_encode(one, "r", task)
    assert changed(), "its request may give it another task"
    made.encoders.close(one, 5.0)
    assert not changed() and made.encoders.due(4.9) == [] and names(made) == []
    assert made.encoders.due(5.0) == [one.ref]
    made.encoders.room(one)
    assert changed() and names(made) == ["e"]


def test_an_instance_that_left_is_forgotten() -> None:
    made, (one,) = cluster(info("e", "e", max_patches=9))
    made.encoders.close(one, 5.0)
    made.remove(one)
    assert made.encoders.due(9.0) == [] and not made.encoders and not made.encoders.is_open(one)


def test_encoding_needs_the_role_and_the_room() -> None:
    assert [encodes(info("i", roles, max_patches=most)) for roles, most in (("e", 1), ("e", 0), ("pd", 1))] == [
        True,
        False,
        False,
    ]


def test_hashes_are_remembered_up_to_a_bound_by_last_use() -> None:
    known, (a, b) = Affinity(2), (InstanceRef("a", 1), InstanceRef("b", 1))
    known.put("x", a)
    known.put("y", a)
    assert known.get("x") == a
    known.put("z", b)
    assert known.get("y") is None and known.get("x") == a and len(known) == 2
    known.put("x", b)
    known.drop("x", a)
    assert known.get("x") == b, "it has moved on"
    known.drop("x", b)
    assert known.get("x") is None and len(known) == 1

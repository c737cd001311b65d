"""Encode tasks: pixels, room, batches, exports, ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.media import asked, bring, encode, item, media_config
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.tasks import AbortTask, EncodeDone, EncodeStaged, Refused, StartEncode, StartLocal, TaskEnded
from triptych.runtime.instance.messages import (
    CloseStaging,
    CompleteStaging,
    DropMedia,
    LeaseExtended,
    MediaArrived,
    OpenStaging,
    StagedReleased,
    Tick,
)
from triptych.runtime.instance.plan import Pool


def _encoder(**changes) -> Node:
    return Node(media_config("e", "E", num_pages=1, max_num_seqs=0, **changes))


def _ended(node: Node) -> list[tuple[str, Status]]:
    return [(end.request, end.status) for end in node.reports(TaskEnded)]


def _assert_free(node: Node) -> None:
    held = node.core.resources()
    assert held.idle, held
    assert held.free_media_pages + held.cached_media_pages == node.config.media_pages - 1
    assert not node.device.shelf


def test_an_encode_tasks_life():
    node = _encoder()
    req = asked("a", item("x", 1), item("y", 9, tokens=3))
    staged = encode(node, req)
    (opened,) = [m for m in node.messages if isinstance(m, OpenStaging)]
    assert (opened.pool, opened.first_page, opened.pages, opened.prompt_tokens) == (Pool.MEDIA, 0, 3, 12)
    assert staged.lacking == (0, 1) and staged.handle.digest == "md" and staged.handle.key == opened.key
    assert not node.ready()
    bring(node, "y")
    node.run()
    bring(node, "x")
    node.run()
    first, second = node.device.plans
    assert [[e.hash for e in plan.encodes] for plan in node.device.plans] == [["y"], ["x"]]
    assert [(e.first_page, len(e.pages), e.last, e.pool) for e in first.exports] == [(2, 1, False, Pool.MEDIA)]
    assert [(e.first_page, len(e.pages), e.last) for e in second.exports] == [(0, 2, True)]
    (done,) = node.reports(EncodeDone)
    assert done.encoded == 2
    (complete,) = [m for m in node.messages if isinstance(m, CompleteStaging)]
    assert (complete.key, complete.continuation, complete.pool) == (opened.key, None, Pool.MEDIA)
    assert {m.hash for m in node.messages if isinstance(m, DropMedia)} == {"x", "y"}
    pages = node.exported[opened.key]
    read = [node.device.embeddings[pages[index]] for index in range(3)]
    assert read[0] == [("x", n) for n in range(4)] and read[1][:2] == [("x", 4), ("x", 5)] and read[2][0] == ("y", 0)
    node.send(StagedReleased(opened.key))
    assert _ended(node) == [("a", Status.OK)]
    (closed,) = [m for m in node.messages if isinstance(m, CloseStaging)]
    assert closed.pool is Pool.MEDIA
    _assert_free(node)


def test_what_is_in_the_store_is_not_encoded_again():
    node = _encoder()
    for name in "ab":
        staged = encode(node, asked(name, item("x", 0)))
        if staged.lacking:
            bring(node, "x")
        node.run()
        node.send(StagedReleased(staged.handle.key))
    assert node.device.encoded == ["x"]
    assert [done.encoded for done in node.reports(EncodeDone)] == [1, 0]
    assert not node.device.plans[-1].encodes and node.device.plans[-1].exports, "a plan of exports only"
    _assert_free(node)


def test_an_item_that_is_being_encoded_is_waited_for():
    node = _encoder()
    one, two = encode(node, asked("a", item("x", 0))), encode(node, asked("b", item("x", 5)))
    assert one.lacking == two.lacking == (0,)
    bring(node, "x")
    three = encode(node, asked("c", item("x", 2)))
    assert three.lacking == (), "the pixels are here"
    node.run()
    assert node.device.encoded == ["x"]
    assert sorted(done.encoded for done in node.reports(EncodeDone)) == [0, 0, 1]
    for staged in (one, two, three):
        assert sorted(node.exported[staged.handle.key]) == [0, 1]
        node.send(StagedReleased(staged.handle.key))
    _assert_free(node)


def test_two_items_of_one_hash_are_encoded_once_and_staged_twice():
    node = _encoder()
    staged = encode(node, asked("a", item("x", 0), item("x", 8)))
    assert staged.lacking == (0,)
    bring(node, "x")
    node.run()
    assert node.device.encoded == ["x"] and sorted(node.exported[staged.handle.key]) == [0, 1, 2, 3]
    node.send(StagedReleased(staged.handle.key))
    _assert_free(node)


def test_items_of_several_requests_share_a_step_up_to_the_patches_it_holds():
    node = _encoder()
    for name in "abc":
        encode(node, asked(name, item(name, 0, patches=7)))
    bring(node, "c", "a", "b")
    node.run()
    assert [[e.hash for e in plan.encodes] for plan in node.device.plans] == [["a", "b"], ["c"]]


def test_each_arrival_gives_the_other_pixels_their_time_again():
    node = _encoder()
    encode(node, asked("a", item("x", 0), item("y", 8)), ttl=2.0)
    node.now = 1.9
    bring(node, "x")
    node.run()
    node.now = 3.8
    node.send(Tick())
    assert not node.reports(TaskEnded)
    node.now = 3.95
    node.send(Tick())
    (end,) = node.reports(TaskEnded)
    assert end.status is Status.UNAVAILABLE


def test_pixels_that_do_not_come_end_the_task():
    node = _encoder()
    encode(node, asked("a", item("x", 0), item("y", 8)), ttl=2.0)
    bring(node, "x")
    node.run()
    node.now = 1.9
    node.send(Tick())
    assert not node.reports(TaskEnded)
    node.now = 2.0
    node.send(Tick())
    (end,) = node.reports(TaskEnded)
    assert (end.role, end.status) == (Role.ENCODE, Status.UNAVAILABLE) and "the pixels did not come" in end.reason
    node.run()
    _assert_free(node)
    assert encode(node, asked("b", item("x", 0))).lacking == (), "what was encoded stays cached"


def test_the_ttl_is_about_pixels_only():
    """Once they are there, a task waits for room: a lease, and longer if it is not the first to wait."""
    node = _encoder(media_pages=4)
    staged = encode(node, asked("a", item("x", 0, tokens=9)), lease=50.0)
    bring(node, "x")
    node.run()
    for name in "yz":
        encode(node, asked(name, item(name, 0, tokens=9)), ttl=2.0, lease=30.0)
        bring(node, name)
    node.now = 29.0
    node.send(Tick())
    node.run()
    assert not node.reports(TaskEnded) and node.device.encoded == ["x"]
    node.now = 31.0
    node.send(Tick())
    (end,) = node.reports(TaskEnded)
    assert end.request == "y" and "no room" in end.reason
    node.send(StagedReleased(staged.handle.key))
    node.run()
    assert node.device.encoded == ["x", "z"]


def test_a_pool_full_of_staged_embeddings_stops_encoding():
    node = _encoder(media_pages=6)
    for name in "abcd":
        encode(node, asked(name, item(name, 0, tokens=8)), lease=9.0)
        bring(node, name)
    node.run()
    assert node.device.encoded == ["a", "b"]
    assert node.core.load().free_media_pages == 1 and node.core.load().encoding == 16
    node.send(StagedReleased(node.reports(EncodeStaged)[1].handle.key))
    node.run()
    assert node.device.encoded == ["a", "b", "c"]


def test_what_has_no_pixels_does_not_keep_others_from_being_encoded():
    node = _encoder(media_pages=4)
    encode(node, asked("a", item("x", 0, tokens=12)))
    encode(node, asked("b", item("y", 0, tokens=12)))
    bring(node, "y")
    node.run()
    assert node.device.encoded == ["y"]


def test_pixels_that_wait_for_pages_do_not_keep_out_those_that_have_pages():
    """A full shelf: who holds pages gets its pixels, whatever waits for these pages; who has none is not late because of us."""
    node = _encoder(media_pages=5)
    encode(node, asked("a", item("x", 0, tokens=8), item("y", 8, tokens=8)))
    bring(node, "x")
    encode(node, asked("b", item("z", 0, tokens=8)))
    bring(node, "z")
    node.run()
    encode(node, asked("c", item("v", 0)), ttl=2.0)
    assert node.device.encoded == ["x"], "a holds all pages, and z waits for some"
    assert node.core.pixels_refused("y", node.now)
    node.now = 1.9
    assert not node.core.pixels_refused("v", node.now)
    assert not node.core.pixels_refused("nobody's", node.now)
    node.now = 3.8
    node.send(Tick())
    assert _ended(node) == [("a", Status.UNAVAILABLE)], "nobody brings y; v was refused a while ago"
    node.now = 3.95
    node.send(Tick())
    assert _ended(node)[1:] == [("c", Status.UNAVAILABLE)]


def test_tasks_that_pin_each_others_room_do_not_wait_for_ever():
    node = _encoder(media_pages=6)
    for name in "xy":
        node.send(StagedReleased(_stage(node, name, tokens=8)))
    encode(node, asked("a", item("x", 0, tokens=8), item("v", 10, tokens=12)))  # pins 2 of 5 pages, needs 3 more
    encode(node, asked("b", item("y", 0, tokens=8), item("w", 10, tokens=12)))  # the same
    bring(node, "v", "w")
    node.run()
    assert _ended(node)[2:] == [("b", Status.UNAVAILABLE)]
    assert [done.request for done in node.reports(EncodeDone)][2:] == ["a"]


def _stage(node: Node, name: str, tokens: int) -> int:
    staged = encode(node, asked(f"r{name}", item(name, 0, tokens=tokens)))
    bring(node, name)
    node.run()
    return staged.handle.key


def test_requests_that_say_different_things_of_one_item_are_refused_and_break_nothing():
    node = Node(media_config("i", "EPD"))
    encode(node, asked("a", item("x", 0, tokens=4, patches=8)))
    for name, other in (("b", {"tokens": 5}), ("c", {"patches": 9}), ("d", {"tokens": 8})):
        wrong = asked(name, item("x", 0, **({"tokens": 4, "patches": 8} | other)))
        for command in (StartEncode(wrong, (0,), 2.0, 5.0), StartLocal(wrong)):
            node.command(command)
            refused = node.reports(Refused)[-1]
            assert (refused.request, refused.permanent) == (name, True) and "item x" in refused.reason
    node.command(StartLocal(asked("e", item("y", 0, tokens=4), item("y", 6, tokens=5))))
    assert node.reports(Refused)[-1].request == "e"
    bring(node, "x")
    node.run()
    assert [done.request for done in node.reports(EncodeDone)] == ["a"]


def test_a_lease_that_runs_out_ends_the_task_and_signs_of_life_extend_it():
    node = _encoder()
    key = _stage(node, "x", 4)
    node.now = 4.0
    node.send(LeaseExtended(key))
    node.now = 8.9
    node.send(Tick())
    assert not node.reports(TaskEnded)
    node.now = 9.0
    node.send(Tick())
    (end,) = node.reports(TaskEnded)
    assert end.status is Status.UNAVAILABLE and "lease" in end.reason and "embeddings" in end.reason
    _assert_free(node)


def test_what_is_waited_for_is_kept_until_others_have_waited_for_its_room_as_long_as_a_lease():
    node = _encoder(media_pages=4)  # three pages
    first, second, pulling = _stage(node, "x", 4), _stage(node, "y", 4), _stage(node, "z", 4)

    def time_passes(seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            node.now += 0.5
            for key in (first, second):
                node.send(LeaseExtended(key, waiting=True))
            node.send(LeaseExtended(pulling))
            node.send(Tick())

    time_passes(20.0)
    assert not node.reports(TaskEnded), "nobody needs the room"
    encode(node, asked("b", item("w", 0, tokens=4)))
    bring(node, "w")
    time_passes(4.5)
    assert not node.reports(TaskEnded)
    time_passes(1.0)
    (end,) = node.reports(TaskEnded)
    assert (end.request, end.status) == ("ry", Status.UNAVAILABLE), "the youngest, and not what is being pulled"
    assert "no room" in end.reason
    node.run()
    assert node.reports(EncodeDone)[-1].request == "b"


def test_an_abort_at_any_moment_frees_everything():
    for moment in range(4):
        node = _encoder()
        req = asked("a", item("x", 0))
        encode(node, req)
        if moment >= 1:
            bring(node, "x")
        if moment >= 2:
            node.ready()
        if moment >= 3:
            node.done()
        node.command(AbortTask("a", Status.CANCELLED, "enough", Role.ENCODE))
        node.run()
        assert _ended(node) == [("a", Status.CANCELLED)]
        _assert_free(node)


def test_pixels_of_an_item_in_a_plan_are_kept_until_the_plan_is_done():
    node = _encoder()
    encode(node, asked("a", item("x", 0)))
    bring(node, "x")
    node.ready()
    node.command(AbortTask("a", Status.CANCELLED, "enough"))
    assert node.device.shelf == {"x"}
    node.done()
    assert not node.device.shelf


def test_pixels_that_nobody_needs_are_dropped_at_once():
    node = _encoder()
    node.device.shelf.add("x")
    assert node.send(MediaArrived("x")) == [DropMedia("x")]
    staged = encode(node, asked("a", item("x", 0)))
    bring(node, "x")
    node.run()
    node.send(StagedReleased(staged.handle.key))
    node.device.shelf.add("x")
    assert node.send(MediaArrived("x")) == [DropMedia("x")]


def test_a_newer_attempt_ends_the_older_ones_task_and_an_equal_one_is_refused():
    node = _encoder()
    req = asked("a", item("x", 0))
    encode(node, req)
    node.command(StartEncode(req, (0,), 1.0, 1.0))
    (refused,) = node.reports(Refused)
    assert (refused.role, refused.permanent) == (Role.ENCODE, False)
    encode(node, replace(req, attempt=2))
    assert [(end.attempt, end.status) for end in node.reports(TaskEnded)] == [(1, Status.UNAVAILABLE)]
    (held,) = node.core.held()
    assert (held.attempt, held.role, held.running) == (2, Role.ENCODE, False)


@pytest.mark.parametrize(
    ("items", "indices", "roles", "reason"),
    [
        ((item("x", 0, patches=17),), (0,), "E", "17 patches"),
        ((item("x", 0, tokens=61),), (0,), "E", "16 pages"),
        ((item("x", 0, tokens=30), item("y", 30, tokens=30)), (0, 1), "E", "16 pages"),
        ((item("x", 0),), (1,), "E", "the request has 1"),
        ((item("x", 0),), (), "E", "the request has 1"),
        ((item("x", 4), item("y", 8)), (0,), "E", "without overlaps"),
        ((item("x", 0),), (0,), "PD", "encode needed"),
    ],
)
def test_what_can_never_be_encoded_is_refused_for_good(items, indices, roles, reason):
    node = Node(media_config("e", roles, media_pages=16))
    node.command(StartEncode(asked("a", *items), indices, 1.0, 1.0))
    (refused,) = node.reports(Refused)
    assert refused.permanent and refused.role is Role.ENCODE and reason in refused.reason
    assert not node.core.held()


def test_a_full_queue_refuses_for_now():
    node = _encoder(max_waiting=2)
    for name in "ab":
        encode(node, asked(name, item(name, 0)))
    node.command(StartEncode(asked("c", item("c", 0)), (0,), 1.0, 1.0))
    (refused,) = node.reports(Refused)
    assert not refused.permanent


def test_a_lost_pool_ends_the_tasks_and_drops_the_pixels():
    node = _encoder()
    encode(node, asked("a", item("x", 0)))
    bring(node, "x")
    messages = node.core.reset(InstanceRef("e", 9))
    assert DropMedia("x") in messages
    node.core.audit()
    assert node.core.resources().idle and node.core.load().encoding == 0


def test_roles_change_to_encode_and_back_and_the_store_stays():
    node = Node(media_config("i", "PD", switchable=frozenset({Role.ENCODE})))
    node.core.switch(InstanceRef("i", 8), frozenset({Role.ENCODE}))
    key = _stage(node, "x", 4)
    node.send(StagedReleased(key))
    node.core.switch(InstanceRef("i", 9), frozenset({Role.PREFILL, Role.DECODE}))
    assert node.core.resources().cached_media_pages == 1
    node.core.audit()


def test_small_tasks_do_not_overtake_one_that_waits_for_room():
    node = _encoder(media_pages=6)
    key = _stage(node, "x", tokens=12)
    for name, tokens in (("a", 12), ("b", 8)):
        encode(node, asked(name, item(name, 0, tokens=tokens)))
    bring(node, "a", "b")
    node.run()
    assert node.device.encoded == ["x"]
    node.send(StagedReleased(key))
    node.run()
    assert node.device.encoded == ["x", "a", "b"]


def test_pixels_that_come_twice_are_dropped_once():
    node = _encoder()
    encode(node, asked("a", item("x", 0)))
    bring(node, "x")
    node.ready()
    assert node.send(MediaArrived("x")) == []
    assert DropMedia("x") in node.done()


def test_what_waits_for_its_puller_gives_way_to_a_prompt_here_that_waits_for_its_room():
    """Two instances that encode for each other's prompts would wait for ever."""
    node = Node(media_config("i", "EPD", media_pages=4))  # three pages
    first, second = _stage(node, "x", 4), _stage(node, "y", 4)
    node.command(StartLocal(asked("a", item("w", 0, tokens=8))))
    for _ in range(12):
        assert not [end for end in node.reports(TaskEnded) if end.status is Status.UNAVAILABLE]
        node.now += 0.5
        for key in (first, second):
            node.send(LeaseExtended(key, waiting=True))
        node.send(Tick())
        if node.now > 5.5:
            break
    node.now += 1.0
    node.send(Tick())
    (end,) = node.reports(TaskEnded)
    assert (end.request, end.status) == ("ry", Status.UNAVAILABLE) and "a prompt here" in end.reason
    assert node.core.resources().held_media_pages == 3, "the prompt has its two pages"

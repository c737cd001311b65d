"""Media that all tokens attend to: on whichever instance computes tokens they are held as long as the sequence lives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.instance.attending import check_rest, decode_node, import_kv, reserve
from tests.runtime.instance.cluster import Node
from tests.runtime.instance.media import (
    asked,
    assert_free,
    bring,
    check,
    encode,
    feed,
    heard,
    item,
    local,
    media_config,
    prompt_node,
    pulled,
    serve,
    wanted,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.tasks import (
    AbortTask,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    Granted,
    MediaWanted,
    PrefillDone,
    Refused,
    ReserveDecode,
    StartDecode,
    StartEncode,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance.messages import CancelPull, ImportFailed, Report
from triptych.runtime.instance.plan import Pool, Row
from triptych.runtime.instance.spans import difference


def rows(node: Node) -> list[Row]:
    return [row for plan in node.device.plans for row in plan.rows]


def started(node: Node) -> list[str]:
    return [report.request for report in node.reports(DecodeStarted)]


def held_pages(node: Node) -> int:
    return node.core.resources().held_media_pages


# ---- where prompts are computed


def test_every_row_of_a_local_task_attends_and_decode_rows_stay_decode_rows():
    node = prompt_node(chunk_tokens=2)
    req = asked("a", heard("s", tokens=10), heard("t", tokens=3), item("x", 1, tokens=5), text=3, n=2)
    serve(node, req)
    check(node, req)
    assert {tuple(media.count for media in row.attended) for row in rows(node)} == {(10, 3)}
    assert len({row.attended for row in rows(node)}) == 1
    assert any(row.decode for row in rows(node))
    assert_free(node)


def test_a_local_task_holds_what_it_attends_to_until_it_ends_and_the_rest_as_before():
    node = prompt_node(chunk_tokens=4)
    req = asked("a", heard("s", tokens=8), item("x", 0, tokens=4), text=3, max_tokens=3)
    local(node, req)
    (pull,) = feed(node, req, 0, 1)
    pulled(node, req, pull, "s", "x")
    held = [held_pages(node)]
    while not node.reports(TaskEnded):
        node.ready()
        node.done()
        held.append(held_pages(node))
    assert held == [3, 2, 2, 2, 0]
    check(node, req)


def test_a_prefill_task_lets_go_once_its_last_chunk_is_in_a_plan():
    node = prompt_node("P", chunk_tokens=4)
    req = asked("a", heard("s"), text=6)
    node.command(StartPrefill(req, 0, 5.0))
    (pull,) = feed(node, req, 0)
    pulled(node, req, pull, "s")
    held = [held_pages(node)]
    for _ in range(2):
        node.ready()
        held.append(held_pages(node))
    assert held == [2, 2, 0]
    node.run()
    assert node.reports(PrefillDone) and node.core.resources().staged_pages == 2


def test_the_same_prompt_about_the_same_recording_finds_its_kv_and_about_another_does_not():
    node = prompt_node()
    first = asked("a", heard("s"), text=9)
    serve(node, first)
    others = {
        "same": replace(first, id="same"),
        "another": replace(first, id="another", media=(heard("t"),)),
        "both": replace(first, id="both", media=(heard("s"), heard("t"))),
        "turned": replace(first, id="turned", media=(heard("t"), heard("s"))),
        "text": replace(first, id="text", media=()),
    }
    for index, req in enumerate(others.values()):
        serve(node, req, key=100 + index)
        check(node, req)
    cached = {report.request: report.report.cached_tokens for report in node.reports(PrefillDone)}
    assert cached == {"a": 0, "same": 8, "another": 0, "both": 0, "turned": 0, "text": 0}
    assert ("same", (0,)) not in wanted(node), "it is in the store"


def test_a_prompt_in_the_prefix_cache_still_needs_what_its_last_token_attends_to():
    node = prompt_node(media_pages=3)
    first = asked("a", heard("s"), text=9)
    serve(node, first)
    serve(node, asked("b", heard("t")), key=2)  # takes the pages of s
    serve(node, replace(first, id="c"), key=3)
    check(node, replace(first, id="c"))
    assert wanted(node) == [("a", (0,)), ("b", (0,)), ("c", (0,))]


def test_a_preempted_local_sample_keeps_what_it_attends_to():
    node = prompt_node(num_pages=8, prefix_cache=False, max_num_seqs=2, media_pages=3)
    older, req = asked("o", max_tokens=20, text=4), asked("a", heard("s"), text=7, max_tokens=9)
    local(node, older)
    serve(node, req)
    node.run()
    check(node, older)
    check(node, req)
    (end,) = [end for end in node.reports(TaskEnded) if end.request == "a"]
    assert end.preemptions == 1 and wanted(node) == [("a", (0,))]
    assert_free(node)


def test_a_preempted_local_sample_that_lacks_an_image_gathers_everything_at_once():
    """Were the recording held meanwhile, two such samples could wait for each other's room."""
    node = prompt_node(num_pages=8, prefix_cache=False, max_num_seqs=2, media_pages=5)
    older = asked("o", max_tokens=20, text=4)
    req = asked("a", heard("s", tokens=4), item("x", 1, tokens=6), max_tokens=9)
    local(node, older)
    serve(node, req)
    node.run()
    check(node, older)
    check(node, req)
    assert wanted(node) == [("a", (0, 1))], "all of it was in the store still"
    assert_free(node)


# ---- where they are not


def test_a_decode_task_wants_its_media_with_the_grant():
    node = decode_node()
    req = asked("a", heard("s"), item("x", 0), heard("s"))
    req = replace(req, media=(heard("s"), heard("t"), item("x", 0)))
    messages = node.command(ReserveDecode(req, 9.0))
    assert [m.report for m in messages if isinstance(m, Report)] == [Granted("a", 0), MediaWanted("a", (0, 1))]
    assert held_pages(node) == 4, "room for it is part of the grant"
    again = replace(req, id="b")
    messages = node.command(ReserveDecode(again, 9.0))
    assert [type(m.report) for m in messages if isinstance(m, Report)] == [Granted], "they are under way"


@pytest.mark.parametrize("kv_first", [True, False])
def test_decoding_begins_when_kv_and_media_are_there(kv_first):
    node = decode_node()
    req = asked("a", heard("s", tokens=7), text=5, n=2)
    reserve(node, req)
    (pull,) = feed(node, req, 0)
    if kv_first:
        import_kv(node, req)
    else:
        pulled(node, req, pull, "s")
    node.run()
    assert not started(node) and not rows(node)
    (held,) = node.core.held()
    assert not held.running
    assert node.core.load().waiting == 0, "it waits in no queue"
    if kv_first:
        pulled(node, req, pull, "s")
    else:
        import_kv(node, req)
    assert started(node) == ["a"] and node.core.held()[0].running
    node.run()
    check_rest(node, req)
    assert all(row.decode and [media.count for media in row.attended] == [7] for row in rows(node))
    assert_free(node)


def test_what_the_store_has_is_not_wanted():
    node = decode_node()
    for name, key in (("a", 1), ("b", 2)):
        req = asked(name, heard("s"), text=5)
        reserve(node, req)
        if name == "a":
            (pull,) = feed(node, req, 0, key=key)
            pulled(node, req, pull, "s")
        import_kv(node, req)
        node.run()
        check_rest(node, req)
    assert wanted(node) == [("a", (0,))] and node.core.media_counts.found == 1
    assert_free(node)


def test_samples_hold_it_each_for_itself():
    node = decode_node()
    req = asked("c", heard("s"), n=3, max_tokens=12, ignore_eos=False, stop_token_ids=tuple(range(0, 97, 5)))
    reserve(node, req)
    (pull,) = feed(node, req, 0)
    pulled(node, req, pull, "s")
    import_kv(node, req)
    held = []
    while not node.reports(TaskEnded):
        held.append((len(node.core.state.running), held_pages(node)))
        node.ready()
        node.done()
    assert {running for running, _ in held} >= {3, 2, 1} and {pages for _, pages in held} == {2}
    check_rest(node, req)
    assert_free(node)


def test_a_preempted_sample_computes_its_prompt_again_in_place():
    node = decode_node(num_pages=8, prefix_cache=False, max_num_seqs=2, media_pages=3)
    older, req = asked("o", max_tokens=24, text=4), asked("a", heard("s"), text=7, max_tokens=12)
    reserve(node, older)
    import_kv(node, older)
    reserve(node, req)
    (pull,) = feed(node, req, 0)
    pulled(node, req, pull, "s")
    import_kv(node, req)
    node.run()
    ends = {end.request: (end.status, end.preemptions) for end in node.reports(TaskEnded)}
    assert ends == {"o": (Status.OK, 0), "a": (Status.OK, 1)}
    assert any(not row.decode and row.attended for row in rows(node)) and wanted(node) == [("a", (0,))]
    check_rest(node, older)
    check_rest(node, req)
    assert_free(node)


def test_a_preempted_sample_with_an_image_ends_and_holds_nothing():
    node = decode_node(num_pages=8, prefix_cache=False, max_num_seqs=2)
    older, req = asked("o", max_tokens=24, text=4), asked("a", heard("s"), item("x", 1, tokens=4), max_tokens=12)
    reserve(node, older)
    import_kv(node, older)
    reserve(node, req)
    (pull,) = feed(node, req, 0)
    pulled(node, req, pull, "s")
    import_kv(node, req)
    node.run()
    (end,) = [end for end in node.reports(TaskEnded) if end.request == "a"]
    assert end.status is Status.UNAVAILABLE and "embeddings" in end.reason
    check_rest(node, older)
    assert_free(node)


def test_a_pull_that_fails_is_wanted_again_three_times_in_all():
    node = decode_node()
    req = asked("a", heard("s"))
    reserve(node, req)
    for turn in range(3):
        assert not node.reports(TaskEnded)
        (pull,) = feed(node, req, 0, key=turn)
        node.send(ImportFailed("a", Status.UNAVAILABLE, f"cut {turn}", 1, Pool.MEDIA, pull.source_key))
    assert wanted(node) == [("a", (0,))] * 3
    (end,) = node.reports(TaskEnded)
    assert (end.role, end.status) == (Role.DECODE, Status.UNAVAILABLE) and "cut 2" in end.reason
    assert [m.pool for m in node.messages if isinstance(m, CancelPull)] == [Pool.KV]
    assert_free(node)


@pytest.mark.parametrize("kv", [True, False])
def test_an_aborted_task_cancels_both_pulls(kv):
    node = decode_node()
    req = asked("a", heard("s"))
    reserve(node, req)
    (pull,) = feed(node, req, 0, key=5)
    if kv:
        import_kv(node, req)
    messages = node.command(AbortTask("a", Status.CANCELLED, "enough"))
    cancelled = [(m.pool, m.key) for m in messages if isinstance(m, CancelPull)]
    assert (Pool.MEDIA, pull.source_key) in cancelled and len(cancelled) == (1 if kv else 2)
    assert_free(node)


def test_a_lost_pool_forgets_what_was_held():
    node = decode_node()
    req = asked("a", heard("s"))
    reserve(node, req)
    import_kv(node, req)
    node.core.reset(InstanceRef("d", 9))
    node.core.audit()
    assert_free(node)


# ---- refusals


def test_a_decode_instance_without_room_refuses_and_holds_nothing():
    node = decode_node(media_pages=4)
    reserve(node, asked("a", heard("s", tokens=8)))
    node.command(ReserveDecode(asked("b", heard("t", tokens=8)), 9.0))
    (refused,) = node.reports(Refused)
    assert not refused.permanent and "media" in refused.reason
    assert len(node.core.held()) == 1
    node.command(ReserveDecode(asked("c", heard("s", tokens=8)), 9.0))
    assert len(node.reports(Granted)) == 2, "what is there takes no room"


@pytest.mark.parametrize(
    ("pages", "items", "reason"),
    [
        (0, (heard("s"),), "takes none"),
        (3, (heard("s", tokens=9),), "3 pages"),
        (16, (replace(heard("s"), offset=2),), "offset 0"),
        (16, (item("x", 0), heard("s")), "offset 0"),
    ],
)
def test_a_decode_instance_refuses_for_good_what_it_can_never_hold(pages, items, reason):
    node = decode_node(media_pages=pages)
    node.command(ReserveDecode(replace(asked("a", text=30), media=items), 9.0))
    (refused,) = node.reports(Refused)
    assert refused.permanent and reason in refused.reason


def test_images_alone_need_nothing_of_a_decode_instance():
    node = decode_node(media_pages=0)
    req = asked("a", item("x", 1))
    reserve(node, req)
    import_kv(node, req)
    node.run()
    check_rest(node, req)


def test_a_prompt_that_waits_for_room_goes_before_later_reservations():
    node = Node(media_config("i", "PD", media_pages=6))
    first, second = asked("a", heard("s", tokens=12)), asked("b", heard("t", tokens=12))
    local(node, first)
    local(node, second)
    node.command(ReserveDecode(asked("c", heard("u", tokens=8)), 9.0))
    (refused,) = node.reports(Refused)
    assert refused.request == "c" and not refused.permanent
    assert wanted(node) == [("a", (0,)), ("b", (0,))]


def test_places_of_what_is_attended_to_are_checked():
    recording: MediaItem = heard("s")
    assert difference((recording, recording, item("x", 0)), 6) is None
    assert "item 1" in (difference((item("x", 0), recording), 6) or "")
    assert "item 0" in (difference((replace(recording, tokens=0),), 6) or "")


# ---- encode instances


def test_two_pullers_of_a_request_have_a_task_each_and_one_encoding():
    node = Node(media_config("e", "E"))
    req = asked("a", heard("s"))
    first = encode(node, req, 0)
    node.command(StartEncode(req, (0,), 2.0, 5.0, for_decode=True))
    second = node.reports(EncodeStaged)[-1]
    assert (first.for_decode, second.for_decode) == (False, True) and first.handle.key != second.handle.key
    assert {(held.role, held.for_decode) for held in node.core.held()} == {(Role.ENCODE, False), (Role.ENCODE, True)}
    bring(node, "s")
    node.run()
    assert node.device.encoded == ["s"]
    assert [(done.encoded, done.for_decode) for done in node.reports(EncodeDone)] == [(1, False), (0, True)]
    node.command(AbortTask("a", Status.OK, "done", Role.ENCODE, 1, for_decode=True))
    assert [(end.for_decode, end.status) for end in node.reports(TaskEnded)] == [(True, Status.OK)]
    node.command(StartEncode(req, (0,), 2.0, 5.0))
    assert not node.reports(Refused)[-1].for_decode and not node.reports(Refused)[-1].permanent
    node.command(AbortTask("a", Status.CANCELLED, "enough"))
    assert len(node.reports(TaskEnded)) == 2
    assert_free(node)


def test_an_instance_that_encodes_and_decodes_pulls_nothing_from_itself():
    node = decode_node("ED")
    req = asked("a", heard("s"))
    reserve(node, req)
    node.command(StartEncode(req, (0,), 2.0, 5.0, for_decode=True))
    staged = node.reports(EncodeStaged)[-1]
    assert not feed(node, req, 0, key=staged.handle.key, owner=node.core.ref)
    bring(node, "s")
    node.run()
    import_kv(node, req)
    node.run()
    check_rest(node, req)
    ends = {(end.role, end.for_decode): end.status for end in node.reports(TaskEnded)}
    assert ends == {(Role.ENCODE, True): Status.OK, (Role.DECODE, False): Status.OK}
    assert_free(node)


def test_a_command_of_another_attempt_feeds_nobody():
    node = decode_node()
    req = asked("a", heard("s"))
    reserve(node, req)
    feed(node, replace(req, attempt=2), 0)
    node.command(StartDecode("a", Handle(InstanceRef("p", 1), "host:p", 1, "d"), 2))
    assert node.core.stale == 2


# ---- where it is encoded as well


def test_a_reservation_leaves_room_for_what_is_encoded_here():
    node = decode_node("ED", media_pages=9)  # eight pages, half of them for encoding
    reserve(node, asked("a", heard("s", tokens=8)))
    node.command(ReserveDecode(asked("b", heard("t", tokens=12)), 9.0))
    assert not node.reports(Refused)[-1].permanent
    node.command(ReserveDecode(asked("c", heard("t", tokens=20)), 9.0))
    assert node.reports(Refused)[-1].permanent and "at most" not in node.reports(Refused)[-1].reason
    node.command(ReserveDecode(asked("d", heard("t", tokens=4), item("x", 0, tokens=24)), 9.0))
    assert not node.reports(Refused)[-1].permanent, "when the first one is gone"
    node.command(ReserveDecode(asked("e", heard("t", tokens=8), item("x", 0, tokens=28)), 9.0))
    assert node.reports(Refused)[-1].permanent
    node.command(StartEncode(asked("f", item("y", 0, tokens=16)), (0,), 2.0, 5.0))
    bring(node, "y")
    node.run()
    assert node.device.encoded == ["y"]


def test_a_sample_that_waits_for_kv_gives_way_to_what_cannot_be_encoded_for_want_of_its_room():
    """The KV may be held by reservations whose prompts wait for just that."""
    node = decode_node("ED", num_pages=8, prefix_cache=False, max_num_seqs=4, media_pages=7)
    req, image = asked("a", heard("s", tokens=8), text=7, max_tokens=12), asked("b", item("x", 1, tokens=18))
    reserve(node, req)
    (pull,) = feed(node, req, 0)
    pulled(node, req, pull, "s")
    import_kv(node, req)
    node.command(ReserveDecode(asked("o", text=15), 9.0))
    node.run()
    assert len(node.core.state.waiting) == 1 and held_pages(node) == 2
    encode(node, image)
    bring(node, "x")
    node.run()
    assert not node.device.encoded
    node.now += 5.1
    node.run()
    (end,) = node.reports(TaskEnded)
    assert (end.request, end.status) == ("a", Status.UNAVAILABLE) and "room" in end.reason
    assert node.device.encoded == ["x"]

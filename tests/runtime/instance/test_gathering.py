"""Prompts with media: what they want, how they wait, what they read, and what is known of them afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import request
from tests.runtime.instance.media import (
    asked,
    assert_free,
    check,
    feed,
    item,
    local,
    prompt_node,
    pulled,
    serve,
    wanted,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    FeedMedia,
    MediaWanted,
    PrefillDone,
    Refused,
    Staged,
    StageTimes,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance.messages import (
    CancelPull,
    ImportFailed,
    KeepStaged,
    MediaImported,
    Report,
    StartPull,
    Tick,
)
from triptych.runtime.instance.plan import Pool


def test_media_are_wanted_right_after_the_task_is_taken():
    node = prompt_node("P")
    req = asked("a", item("x", 1), item("y", 9))
    messages = node.command(StartPrefill(req, 0, 5.0))
    kinds = [type(message.report) for message in messages if isinstance(message, Report)]
    assert kinds == [Staged, MediaWanted] and wanted(node) == [("a", (0, 1))]
    both = prompt_node()
    kinds = [type(message.report) for message in local(both, req) if isinstance(message, Report)]
    assert kinds == [Accepted, MediaWanted]


def test_a_prompt_reads_its_embeddings_however_it_is_cut():
    for chunk in (1, 2, 3, 5, 16, 64):
        node = prompt_node(chunk_tokens=chunk)
        req = asked("a", item("x", 2, tokens=7), item("y", 9, tokens=1), item("x", 13, tokens=7), text=2, n=2)
        serve(node, req)
        check(node, req)
        assert not [row for plan in node.device.plans for row in plan.rows if row.decode and row.embedded]
        assert_free(node)


def test_prompt_logprobs_are_scored_and_need_every_item():
    node = prompt_node()
    req = asked("a", item("x", 2, tokens=7), prompt_logprobs=1)
    for name in "ab":
        serve(node, replace(req, id=name), key=ord(name))
    one, two = node.reports(PrefillDone)
    assert one.report.prompt_logprobs == two.report.prompt_logprobs and len(one.report.prompt_logprobs) == 12
    assert wanted(node) == [("a", (0,))], "the second one finds the embeddings in the store"
    assert node.core.media_counts.found == 1


def test_the_pull_is_of_the_whole_staging_into_pages_of_its_own():
    node = prompt_node()
    req = asked("a", item("x", 1, tokens=5), item("y", 9, tokens=3))
    local(node, req)
    (pull,) = feed(node, req, 1, 0, key=5)
    assert (pull.pool, pull.source_key, pull.first_page, pull.prompt_tokens) == (Pool.MEDIA, 5, 0, 12)
    assert len(set(pull.pages)) == 3 and pull.source_digest == "md"
    assert not feed(node, req, 1, 0, key=5), "a repetition"
    pulled(node, req, pull, "y", "x")
    node.run()
    check(node, req)


def test_text_never_waits_behind_media():
    node = prompt_node(max_waiting=1)
    local(node, asked("a", item("x", 1)))
    text = request("t")
    local(node, text)
    node.run()
    check(node, text)
    local(node, asked("b", item("y", 1)))
    (refused,) = node.reports(Refused)
    assert refused.request == "b" and not refused.permanent, "others with media do, within bounds"


def test_what_another_request_brings_is_waited_for_and_not_wanted_twice():
    node = prompt_node()
    one, two = asked("a", item("x", 1)), asked("b", item("x", 3), item("y", 12))
    local(node, one)
    local(node, two)
    assert wanted(node) == [("a", (0,)), ("b", (1,))]
    (pull,) = feed(node, one, 0, key=1)
    pulled(node, one, pull, "x")
    (pull,) = feed(node, two, 1, key=2)
    assert len(pull.pages) == 2
    pulled(node, two, pull, "y")
    node.run()
    check(node, one)
    check(node, two)


@pytest.mark.parametrize("fed", [False, True])
def test_if_the_one_that_was_to_bring_it_ends_the_next_one_wants_it(fed):
    node = prompt_node()
    one, two = asked("a", item("x", 1)), asked("b", item("x", 3))
    local(node, one)
    local(node, two)
    if fed:
        feed(node, one, 0, key=1)
    messages = node.command(AbortTask("a", Status.CANCELLED, "enough"))
    assert [m.key for m in messages if isinstance(m, CancelPull)] == ([1] if fed else [])
    assert wanted(node) == [("a", (0,)), ("b", (0,))]
    (pull,) = feed(node, two, 0, key=2)
    pulled(node, two, pull, "x")
    node.run()
    check(node, two)
    assert_free(node)


def test_a_failed_pull_is_wanted_again_three_times_in_all():
    node = prompt_node()
    req = asked("a", item("x", 1), item("y", 9))
    local(node, req)
    for turn in range(3):
        assert not node.reports(TaskEnded)
        (pull,) = feed(node, req, 0, 1, key=turn)
        node.send(ImportFailed("a", Status.UNAVAILABLE, f"cut {turn}", 1, Pool.MEDIA, pull.source_key))
    assert wanted(node) == [("a", (0, 1))] * 3
    (end,) = node.reports(TaskEnded)
    assert end.status is Status.UNAVAILABLE and "media item 0" in end.reason and "cut 2" in end.reason
    assert_free(node)


def test_events_of_other_pulls_and_attempts_are_dropped():
    node = prompt_node()
    req = asked("a", item("x", 1))
    local(node, req)
    node.send(MediaImported("a", 9, StageTimes(), 1))
    node.send(ImportFailed("a", Status.UNAVAILABLE, "late", 1, Pool.MEDIA, 9))
    node.command(FeedMedia("a", Handle(InstanceRef("e", 1), "host:e", 9, "md"), (0,), 2))
    node.command(FeedMedia("b", Handle(InstanceRef("e", 1), "host:e", 9, "md"), (0,), 1))
    assert node.core.stale == 4 and not [m for m in node.messages if isinstance(m, StartPull)]


def test_a_pull_waits_for_room_first_come_first_served():
    node = prompt_node(media_pages=6)  # five pages: one request of three at a time, and two pages more
    reqs = [asked(name, item(name, 1, tokens=size)) for name, size in (("a", 12), ("b", 12), ("c", 8))]
    for req in reqs:
        local(node, req)
    assert [name for name, _ in wanted(node)] == ["a", "b", "c"], "encoding may go on meanwhile"
    (first,) = feed(node, reqs[0], 0, key=1)
    assert not feed(node, reqs[2], 0, key=3), "room for it, but not its turn"
    assert not feed(node, reqs[1], 0, key=2)
    assert node.core.load().free_media_pages == 2
    pulled(node, reqs[0], first, "a")
    node.run()
    second, third = (m for m in node.messages if isinstance(m, StartPull) and m.source_key != 1)
    assert (second.source_key, third.source_key) == (2, 3)
    pulled(node, reqs[1], second, "b")
    pulled(node, reqs[2], third, "c")
    node.run()
    for req in reqs:
        check(node, req)
    assert_free(node)


def test_the_owner_of_what_waits_for_room_here_is_told_so_again_and_again():
    node = prompt_node(media_pages=4)  # three pages: one request at a time
    reqs = [asked(name, item(name, 1, tokens=12)) for name in "abc"]
    for req in reqs:
        local(node, req)
    (pull,) = feed(node, reqs[0], 0, key=1)
    feed(node, reqs[1], 0, key=2)
    feed(node, reqs[2], 0, key=3, owner=InstanceRef("f", 4))

    def kept(seconds: float) -> list[tuple[str, tuple[int, ...]]]:
        told = []
        for _ in range(int(seconds * 4)):
            node.now += 0.25
            told += [(m.owner.id, m.keys) for m in node.send(Tick()) if isinstance(m, KeepStaged)]
        return told

    assert kept(3.0) == [("e", (2,)), ("f", (3,))] * 3
    node.command(AbortTask("c", Status.CANCELLED, "gone"))
    assert kept(2.0) == [("e", (2,))] * 2
    pulled(node, reqs[0], pull, "a")
    node.run()
    assert kept(2.0) == [], "its pull has begun, and says so itself"


def test_what_is_in_the_store_goes_before_those_that_wait_for_room():
    node = prompt_node(media_pages=6)
    serve(node, asked("a", item("x", 0, tokens=4)))
    big, small = asked("b", item("y", 1, tokens=20)), asked("c", item("x", 1, tokens=4))
    held = asked("h", item("z", 1, tokens=4))
    local(node, held)
    local(node, big)
    local(node, small)
    node.run()
    check(node, small)


def test_an_entry_of_which_a_page_was_evicted_is_wanted_again():
    node = prompt_node(media_pages=6, prefix_cache=False)
    req = asked("a", item("x", 1, tokens=12))
    serve(node, req)
    serve(node, asked("b", item("y", 1, tokens=12)), key=2)  # takes one of x's three pages
    serve(node, replace(req, id="c"), key=3)
    assert wanted(node) == [("a", (0,)), ("b", (0,)), ("c", (0,))]
    serve(node, replace(req, id="d"), key=4)
    assert len(wanted(node)) == 3
    check(node, replace(req, id="d"))


def test_a_second_question_about_an_image_wants_nothing():
    node = prompt_node()
    first = asked("a", item("x", 1, tokens=10), text=5)
    serve(node, first)
    second = replace(first, id="b", prompt=(*first.prompt[:13], 5, 6, 7, 8, 9))
    serve(node, second)
    check(node, second)
    assert wanted(node) == [("a", (0,))]
    assert node.reports(PrefillDone)[-1].report.cached_tokens == 12


def test_only_items_that_the_prefix_cache_does_not_cover_are_wanted():
    node = prompt_node()
    first = asked("a", item("x", 0, tokens=8), text=2)
    serve(node, first)
    second = replace(
        asked("b", item("x", 0, tokens=8), item("y", 10, tokens=4)),
        prompt=(*first.prompt[:10], 96, 96, 96, 96, 1),
    )
    serve(node, second)
    check(node, second)
    assert wanted(node)[-1] == ("b", (1,))


def test_kv_that_was_evicted_between_sends_the_prompt_back_to_ask():
    """When it came, the prefix cache covered the image; when it is admitted, it does not."""
    node = prompt_node(num_pages=12, max_num_seqs=2, media_pages=4)
    first = asked("a", item("x", 0, tokens=8), text=1, max_tokens=1)
    serve(node, first)
    serve(node, asked("m", item("y", 0, tokens=12), text=1, max_tokens=1), key=2)  # the embeddings of x are gone, too
    blocker = request("t", 12, max_tokens=19)
    local(node, blocker)
    node.ready()
    node.done()
    again = replace(first, id="b", sampling=replace(first.sampling, max_tokens=2, n=2))
    local(node, again)
    count = len(wanted(node))
    node.run()
    assert len(wanted(node)) == count + 1 and wanted(node)[-1] == ("b", (0,))
    (pull,) = feed(node, again, 0, key=3)
    pulled(node, again, pull, "x")
    node.run()
    check(node, blocker)
    check(node, again)


def test_references_are_given_up_when_the_last_token_of_an_item_is_in_a_plan():
    node = prompt_node(chunk_tokens=5)
    req = asked("a", item("x", 1, tokens=8), item("y", 12, tokens=4))
    local(node, req)
    (pull,) = feed(node, req, 0, 1)
    pulled(node, req, pull, "x", "y")
    held = [node.core.resources().held_media_pages]
    for _ in range(4):
        node.ready()
        held.append(node.core.resources().held_media_pages)
        node.done()
    assert held == [3, 3, 1, 1, 0]


def test_who_has_room_does_not_wait_for_what_one_without_room_has_wanted():
    """The one without room could not pull it, perhaps because of the one that has."""
    node = prompt_node(num_pages=8, prefix_cache=False, max_num_seqs=2, media_pages=5)
    older, req = asked("o", max_tokens=20, text=4), asked("a", item("x", 1, tokens=4), max_tokens=14)
    local(node, older)
    local(node, req)
    (pull,) = feed(node, req, 0)
    pulled(node, req, pull, "x")
    for _ in range(3):
        node.ready()
        node.done()
    local(node, asked("b", item("u", 0, tokens=4)))
    local(node, asked("c", item("w", 0, tokens=12)))  # takes the page of x
    local(node, asked("d", item("x", 0, tokens=4), item("y", 4, tokens=12)))  # finds no room
    node.run()
    assert wanted(node) == [("a", (0,)), ("b", (0,)), ("c", (0,)), ("d", (0, 1))]
    node.command(AbortTask("c", Status.CANCELLED, "enough"))
    assert wanted(node)[-1] == ("a", (0,)), "it was preempted, and has room again"
    (pull,) = feed(node, req, 0, key=9)
    pulled(node, req, pull, "x")
    node.run()
    check(node, req)


@pytest.mark.parametrize("room", [True, False])
def test_a_staging_is_pulled_whole_though_some_of_it_came_otherwise(room):
    node = prompt_node(media_pages=5 if room else 4)
    req = asked("a", item("x", 1, tokens=4), item("y", 6, tokens=8))
    local(node, req)
    (pull,) = feed(node, req, 0, key=1)
    pulled(node, req, pull, "x")
    pulls = feed(node, req, 0, 1, key=2)
    if not room:  # then what is left is wanted by itself
        assert not pulls and wanted(node)[-1] == ("a", (1,))
        pulls = feed(node, req, 1, key=3)
    assert len(pulls[0].pages) == (3 if room else 2)
    entries = node.core.state.media.store.entries if node.core.state.media else {}
    assert not set(pulls[0].pages) & set(entries["x"].pages), "what is read is not written"
    pulled(node, req, pulls[0], *(("x", "y") if room else ("y",)))
    node.run()
    check(node, req)
    assert_free(node)

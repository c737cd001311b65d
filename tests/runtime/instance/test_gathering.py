"""Prompts with media: what they want, how they wait, what they read, and what is known of them afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import Node, request
from tests.runtime.instance.fake_device import expected_outputs
from tests.runtime.instance.media import asked, bring, encode, feed, item, media_config, pulled, wanted
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Continuation, Request, SampleState
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    FeedMedia,
    MediaWanted,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StageTimes,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance.messages import (
    CancelPull,
    Imported,
    ImportFailed,
    MediaImported,
    Report,
    StagedReleased,
    StartPull,
)
from triptych.runtime.instance.plan import Pool


def _local(node: Node, req: Request) -> list:
    return node.command(StartLocal(req))


def _node(roles: str = "PD", **changes) -> Node:
    return Node(media_config("i", roles, **changes))


def _serve(node: Node, req: Request, key: int = 77) -> None:
    """The request is run; what it wants is fed in one pull, if anything."""
    before = len(node.reports(MediaWanted))
    _local(node, req)
    for report in node.reports(MediaWanted)[before:]:
        (pull,) = feed(node, req, *report.items, key=key)
        pulled(node, req, pull, *(req.media[index].hash for index in report.items))
    node.run()


def _check(node: Node, req: Request) -> None:
    for sample in range(req.sampling.n):
        outputs, _ = expected_outputs(req, node.config.max_model_len, sample)
        assert [token.token for token in node.tokens(req.id, sample)] == outputs


def _assert_free(node: Node) -> None:
    held = node.core.resources()
    assert held.idle, held
    assert held.free_media_pages + held.cached_media_pages == node.config.media_pages - 1


# ---- keys ------------------------------------------------------------------------------------------------------------------------------


def test_kv_is_shared_with_the_same_image_at_the_same_place_and_with_nothing_else():
    node = _node()
    first = asked("a", item("x", 5))
    _serve(node, first)
    others = {
        "same": replace(first, id="same"),
        "text": replace(first, id="text", media=()),
        "another": replace(first, id="another", media=(item("y", 5),)),
        "elsewhere": replace(first, id="elsewhere", media=(item("x", 4),)),
        "salted": replace(first, id="salted", cache_salt="s"),
    }
    for index, req in enumerate(others.values()):
        _serve(node, req, key=100 + index)
        _check(node, req)
    cached = {report.request: report.report.cached_tokens for report in node.reports(PrefillDone)}
    # page 0 is text in all; "same" finds all full pages but the last token's
    assert cached == {"a": 0, "same": 12, "text": 4, "another": 4, "elsewhere": 4, "salted": 0}


def test_keys_of_text_are_what_they_were():
    from triptych.runtime.instance.memory import KvMemory
    from triptych.runtime.instance.prefix import page_key
    from triptych.runtime.instance.sequence import Sequence

    memory = KvMemory(media_config())
    roots = memory.roots("")
    text, media = (Sequence(memory, list(range(12)), roots, items) for items in ((), (item("x", 5, tokens=2),)))
    keys = [page_key(roots[0], [0, 1, 2, 3])]
    keys.append(page_key(keys[0], [4, 5, 6, 7]))
    assert [text._key(0, 0), text._key(0, 1)] == keys
    assert media._key(0, 0) == keys[0] and media._key(0, 1) != keys[1]


def test_a_page_inside_an_image_knows_where_in_it_it_lies():
    """Two pages of equal ids in one long image differ, though every one is covered by it alone."""
    from triptych.runtime.instance.spans import page_extra

    media = (item("x", 1, tokens=30),)
    extras = [page_extra(media, start, start + 4) for start in (0, 4, 8)]
    assert len(set(extras)) == 3
    assert page_extra(media, 32, 36) == b""
    assert page_extra((item("x", 0, tokens=2), item("y", 2, tokens=2)), 0, 4) != page_extra(
        (item("x", 0, tokens=2),), 0, 4
    )


# ---- wanting and waiting ---------------------------------------------------------------------------------------------------------------


def test_media_are_wanted_right_after_the_task_is_taken():
    node = _node("P")
    req = asked("a", item("x", 1), item("y", 9))
    messages = node.command(StartPrefill(req, 0, 5.0))
    kinds = [type(message.report) for message in messages if isinstance(message, Report)]
    assert kinds == [Staged, MediaWanted] and wanted(node) == [("a", (0, 1))]
    local = _node()
    kinds = [type(message.report) for message in _local(local, req) if isinstance(message, Report)]
    assert kinds == [Accepted, MediaWanted]


def test_a_prompt_reads_its_embeddings_however_it_is_cut():
    for chunk in (1, 2, 3, 5, 16, 64):
        node = _node(chunk_tokens=chunk)
        req = asked("a", item("x", 2, tokens=7), item("y", 9, tokens=1), item("x", 13, tokens=7), text=2, n=2)
        _serve(node, req)
        _check(node, req)
        assert not [row for plan in node.device.plans for row in plan.rows if row.decode and row.embedded]
        _assert_free(node)


def test_prompt_logprobs_are_scored_and_need_every_item():
    node = _node()
    req = asked("a", item("x", 2, tokens=7), prompt_logprobs=1)
    for name in "ab":
        _serve(node, replace(req, id=name), key=ord(name))
    one, two = node.reports(PrefillDone)
    assert one.report.prompt_logprobs == two.report.prompt_logprobs and len(one.report.prompt_logprobs) == 12
    assert wanted(node) == [("a", (0,))], "the second one finds the embeddings in the store"
    assert node.core.media_counts.found == 1


def test_the_pull_is_of_the_whole_staging_into_pages_of_its_own():
    node = _node()
    req = asked("a", item("x", 1, tokens=5), item("y", 9, tokens=3))
    _local(node, req)
    (pull,) = feed(node, req, 1, 0, key=5)
    assert (pull.pool, pull.source_key, pull.first_page, pull.prompt_tokens) == (Pool.MEDIA, 5, 0, 12)
    assert len(set(pull.pages)) == 3 and pull.source_digest == "md"
    assert not feed(node, req, 1, 0, key=5), "a repetition"
    pulled(node, req, pull, "y", "x")
    node.run()
    _check(node, req)


def test_text_never_waits_behind_media():
    node = _node(max_waiting=1)
    _local(node, asked("a", item("x", 1)))
    text = request("t")
    _local(node, text)
    node.run()
    _check(node, text)
    _local(node, asked("b", item("y", 1)))
    (refused,) = node.reports(Refused)
    assert refused.request == "b" and not refused.permanent, "others with media do, within bounds"


def test_what_another_request_brings_is_waited_for_and_not_wanted_twice():
    node = _node()
    one, two = asked("a", item("x", 1)), asked("b", item("x", 3), item("y", 12))
    _local(node, one)
    _local(node, two)
    assert wanted(node) == [("a", (0,)), ("b", (1,))]
    (pull,) = feed(node, one, 0, key=1)
    pulled(node, one, pull, "x")
    (pull,) = feed(node, two, 1, key=2)
    assert len(pull.pages) == 2
    pulled(node, two, pull, "y")
    node.run()
    _check(node, one)
    _check(node, two)


@pytest.mark.parametrize("fed", [False, True])
def test_if_the_one_that_was_to_bring_it_ends_the_next_one_wants_it(fed):
    node = _node()
    one, two = asked("a", item("x", 1)), asked("b", item("x", 3))
    _local(node, one)
    _local(node, two)
    if fed:
        feed(node, one, 0, key=1)
    messages = node.command(AbortTask("a", Status.CANCELLED, "enough"))
    assert [m.key for m in messages if isinstance(m, CancelPull)] == ([1] if fed else [])
    assert wanted(node) == [("a", (0,)), ("b", (0,))]
    (pull,) = feed(node, two, 0, key=2)
    pulled(node, two, pull, "x")
    node.run()
    _check(node, two)
    _assert_free(node)


def test_a_failed_pull_is_wanted_again_three_times_in_all():
    node = _node()
    req = asked("a", item("x", 1), item("y", 9))
    _local(node, req)
    for turn in range(3):
        assert not node.reports(TaskEnded)
        (pull,) = feed(node, req, 0, 1, key=turn)
        node.send(ImportFailed("a", Status.UNAVAILABLE, f"cut {turn}", 1, Pool.MEDIA, pull.source_key))
    assert wanted(node) == [("a", (0, 1))] * 3
    (end,) = node.reports(TaskEnded)
    assert end.status is Status.UNAVAILABLE and "media item 0" in end.reason and "cut 2" in end.reason
    _assert_free(node)


def test_events_of_other_pulls_and_attempts_are_dropped():
    node = _node()
    req = asked("a", item("x", 1))
    _local(node, req)
    node.send(MediaImported("a", 9, StageTimes(), 1))
    node.send(ImportFailed("a", Status.UNAVAILABLE, "late", 1, Pool.MEDIA, 9))
    node.command(FeedMedia("a", Handle(InstanceRef("e", 1), "host:e", 9, "md"), (0,), 2))
    node.command(FeedMedia("b", Handle(InstanceRef("e", 1), "host:e", 9, "md"), (0,), 1))
    assert node.core.stale == 4 and not [m for m in node.messages if isinstance(m, StartPull)]


def test_a_pull_waits_for_room_first_come_first_served():
    node = _node(media_pages=6)  # five pages: one request of three at a time, and two pages more
    reqs = [asked(name, item(name, 1, tokens=size)) for name, size in (("a", 12), ("b", 12), ("c", 8))]
    for req in reqs:
        _local(node, req)
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
        _check(node, req)
    _assert_free(node)


def test_what_is_in_the_store_goes_before_those_that_wait_for_room():
    node = _node(media_pages=6)
    _serve(node, asked("a", item("x", 0, tokens=4)))
    big, small = asked("b", item("y", 1, tokens=20)), asked("c", item("x", 1, tokens=4))
    held = asked("h", item("z", 1, tokens=4))
    _local(node, held)
    _local(node, big)
    _local(node, small)
    node.run()
    _check(node, small)


def test_an_entry_of_which_a_page_was_evicted_is_wanted_again():
    node = _node(media_pages=6, prefix_cache=False)
    req = asked("a", item("x", 1, tokens=12))
    _serve(node, req)
    _serve(node, asked("b", item("y", 1, tokens=12)), key=2)  # takes one of x's three pages
    _serve(node, replace(req, id="c"), key=3)
    assert wanted(node) == [("a", (0,)), ("b", (0,)), ("c", (0,))]
    _serve(node, replace(req, id="d"), key=4)
    assert len(wanted(node)) == 3
    _check(node, replace(req, id="d"))


def test_a_second_question_about_an_image_wants_nothing():
    node = _node()
    first = asked("a", item("x", 1, tokens=10), text=5)
    _serve(node, first)
    second = replace(first, id="b", prompt=(*first.prompt[:13], 5, 6, 7, 8, 9))
    _serve(node, second)
    _check(node, second)
    assert wanted(node) == [("a", (0,))]
    assert node.reports(PrefillDone)[-1].report.cached_tokens == 12


def test_only_items_that_the_prefix_cache_does_not_cover_are_wanted():
    node = _node()
    first = asked("a", item("x", 0, tokens=8), text=2)
    _serve(node, first)
    second = replace(
        asked("b", item("x", 0, tokens=8), item("y", 10, tokens=4)),
        prompt=(*first.prompt[:10], 96, 96, 96, 96, 1),
    )
    _serve(node, second)
    _check(node, second)
    assert wanted(node)[-1] == ("b", (1,))


def test_kv_that_was_evicted_between_sends_the_prompt_back_to_ask():
    """When it came, the prefix cache covered the image; when it is admitted, it does not."""
    node = _node(num_pages=12, max_num_seqs=2, media_pages=4)
    first = asked("a", item("x", 0, tokens=8), text=1, max_tokens=1)
    _serve(node, first)
    _serve(node, asked("m", item("y", 0, tokens=12), text=1, max_tokens=1), key=2)  # the embeddings of x are gone, too
    blocker = request("t", 12, max_tokens=19)
    _local(node, blocker)
    node.ready()
    node.done()
    again = replace(first, id="b", sampling=replace(first.sampling, max_tokens=2, n=2))
    _local(node, again)
    count = len(wanted(node))
    node.run()
    assert len(wanted(node)) == count + 1 and wanted(node)[-1] == ("b", (0,))
    (pull,) = feed(node, again, 0, key=3)
    pulled(node, again, pull, "x")
    node.run()
    _check(node, blocker)
    _check(node, again)


def test_references_are_given_up_when_the_last_token_of_an_item_is_in_a_plan():
    node = _node(chunk_tokens=5)
    req = asked("a", item("x", 1, tokens=8), item("y", 12, tokens=4))
    _local(node, req)
    (pull,) = feed(node, req, 0, 1)
    pulled(node, req, pull, "x", "y")
    held = [node.core.resources().held_media_pages]
    for _ in range(4):
        node.ready()
        held.append(node.core.resources().held_media_pages)
        node.done()
    assert held == [3, 3, 1, 1, 0]


# ---- one instance for both ---------------------------------------------------------------------------------------------------------------


def test_nothing_is_pulled_where_it_is_encoded():
    node = Node(media_config("i", "EPD"))
    req = asked("a", item("x", 1), item("y", 9))
    _local(node, req)
    staged = encode(node, req)
    assert not feed(node, req, 0, 1, key=staged.handle.key, owner=node.core.ref)
    bring(node, "x", "y")
    node.run()
    _check(node, req)
    ends = {end.role: end.status for end in node.reports(TaskEnded)}
    assert ends == {Role.ENCODE: Status.OK, Role.DECODE: Status.OK}
    assert not [m for m in node.messages if isinstance(m, StartPull)] and not node.device.shelf
    _assert_free(node)


def test_an_encode_task_here_that_ends_without_embeddings_is_a_try():
    node = Node(media_config("i", "EPD"))
    req = asked("a", item("x", 1))
    _local(node, req)
    for turn in range(3):
        staged = encode(node, req)
        feed(node, req, 0, key=staged.handle.key, owner=node.core.ref)
        node.now += 2.0
        node.ready()
        assert len(wanted(node)) == min(turn + 2, 3)
    (end,) = [end for end in node.reports(TaskEnded) if end.role is Role.DECODE]
    assert end.status is Status.UNAVAILABLE
    _assert_free(node)


def test_what_is_encoded_here_for_others_is_waited_for():
    node = Node(media_config("i", "EPD"))
    encode(node, asked("far", item("x", 4)))
    req = asked("a", item("x", 1))
    _local(node, req)
    assert not wanted(node)
    bring(node, "x")
    node.run()
    _check(node, req)
    assert not wanted(node)


def test_two_instances_that_wait_for_each_other_do_not_wait_for_ever():
    """What is being pulled is encoded here all the same once its pixels are here and somebody wants it encoded."""
    node = Node(media_config("i", "EPD"))
    req = asked("a", item("x", 1))
    _local(node, req)
    (pull,) = feed(node, req, 0, key=5)
    encode(node, asked("far", item("x", 4)))
    bring(node, "x")
    assert [m.key for m in node.messages if isinstance(m, CancelPull)] == [pull.source_key]
    node.run()
    _check(node, req)


# ---- elsewhere, and again --------------------------------------------------------------------------------------------------------------


def test_a_prompt_with_media_is_refused_for_good_where_it_can_never_be_computed():
    reasons = []
    for node, req in (
        (_node(media_pages=0), asked("a", item("x", 1))),
        (_node(media_pages=3), asked("a", item("x", 1, tokens=5), item("y", 9, tokens=4))),
        (_node(), asked("a", item("x", 4), item("y", 6))),
    ):
        for command in (StartLocal(req), StartPrefill(req, 0, 5.0)):
            node.command(command)
        refused = node.reports(Refused)
        assert len(refused) == 2 and all(answer.permanent for answer in refused)
        reasons.append(refused[0].reason)
    assert "takes none" in reasons[0] and "3 pages" in reasons[1] and "without overlaps" in reasons[2]


def _decoding(pages: int, *items) -> tuple[Node, Request]:
    """A decode instance with a request whose prompt came from elsewhere, and another that makes it short of pages."""
    node = Node(media_config("d", "D", num_pages=pages, media_pages=0, max_num_seqs=2))
    older, req = asked("o", max_tokens=24, text=4), asked("a", *items, max_tokens=12)
    for one in (older, req):
        node.command(ReserveDecode(one, 9.0))
        node.command(StartDecode(one.id, Handle(InstanceRef("p", 1), "host:p", 1, "d")))
        outputs, _ = expected_outputs(one, node.config.max_model_len)
        pull = [m for m in node.messages if isinstance(m, StartPull)][-1]
        from tests.runtime.instance.fake_device import read_prompt

        for index, token in enumerate(read_prompt(one)):
            node.device.pages[pull.pages[index // 4]][index % 4] = (token, index)
        state = SampleState(0, (outputs[0],))
        node.send(Imported(one.id, Continuation(one, (state,)), StageTimes(), 1))
    return node, req


def test_a_preempted_sample_with_media_ends_where_no_embeddings_are():
    node, _ = _decoding(8, item("x", 1, tokens=6))
    node.run()
    ends = {end.request: end for end in node.reports(TaskEnded)}
    assert ends["o"].status is Status.OK
    assert ends["a"].status is Status.UNAVAILABLE and "preempted" in ends["a"].reason and ends["a"].preemptions == 1
    assert node.core.resources().idle


def test_a_preempted_sample_goes_on_if_the_prefix_cache_still_covers_its_media():
    node, req = _decoding(10, item("x", 1, tokens=6))
    node.run()
    ends = {end.request: end for end in node.reports(TaskEnded)}
    assert (ends["a"].status, ends["a"].preemptions) == (Status.OK, 1)
    outputs, _ = expected_outputs(req, node.config.max_model_len)
    assert [token.token for token in node.tokens("a")] == outputs[1:]


def test_a_preempted_local_sample_gathers_its_media_again():
    node = _node(num_pages=8, prefix_cache=False, max_num_seqs=2)
    older, req = asked("o", max_tokens=20, text=4), asked("a", item("x", 1, tokens=6), max_tokens=9)
    _local(node, older)
    _serve(node, req)
    node.run()
    assert wanted(node) == [("a", (0,))], "the embeddings were in the store still"
    assert node.core.media_counts.found == 1
    _check(node, older)
    _check(node, req)
    (end,) = [end for end in node.reports(TaskEnded) if end.request == "a"]
    assert end.preemptions == 1
    _assert_free(node)


def test_a_resumed_prompt_with_media_is_computed_for_its_puller_and_draws_nothing():
    node = _node("P")
    req = asked("a", item("x", 1))
    node.command(StartPrefill(replace(req, attempt=2), 0, 5.0, (SampleState(0, (3, 4)),)))
    (pull,) = feed(node, replace(req, attempt=2), 0)
    pulled(node, replace(req, attempt=2), pull, "x")
    node.run()
    assert not node.tokens("a") and node.reports(PrefillDone)
    node.send(StagedReleased(node.reports(Staged)[0].handle.key))
    _assert_free(node)


def test_a_lost_pool_forgets_everything_and_cancels_pulls():
    node = _node()
    req = asked("a", item("x", 1))
    _local(node, req)
    (pull,) = feed(node, req, 0)
    messages = node.core.reset(InstanceRef("i", 9))
    assert [m.key for m in messages if isinstance(m, CancelPull)] == [pull.source_key]
    node.core.audit()
    _assert_free(node)

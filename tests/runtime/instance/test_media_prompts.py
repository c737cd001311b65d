"""Media in prompts: page keys, one instance that encodes and computes, samples that are preempted or resumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.fake_device import expected_outputs, read_prompt
from tests.runtime.instance.media import (
    asked,
    assert_free,
    bring,
    check,
    encode,
    feed,
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
from triptych.runtime.core.request import Continuation, Request, SampleState
from triptych.runtime.core.tasks import (
    EncodeDone,
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
from triptych.runtime.instance.memory import KvMemory
from triptych.runtime.instance.messages import (
    CancelPull,
    Imported,
    StagedReleased,
    StartPull,
)
from triptych.runtime.instance.prefix import page_key
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.spans import page_extra


def test_kv_is_shared_with_the_same_image_at_the_same_place_and_with_nothing_else():
    node = prompt_node()
    first = asked("a", item("x", 5))
    serve(node, first)
    others = {
        "same": replace(first, id="same"),
        "text": replace(first, id="text", media=()),
        "another": replace(first, id="another", media=(item("y", 5),)),
        "elsewhere": replace(first, id="elsewhere", media=(item("x", 4),)),
        "salted": replace(first, id="salted", cache_salt="s"),
    }
    for index, req in enumerate(others.values()):
        serve(node, req, key=100 + index)
        check(node, req)
    cached = {report.request: report.report.cached_tokens for report in node.reports(PrefillDone)}
    # page 0 is text in all; "same" finds all full pages but the last token's
    assert cached == {"a": 0, "same": 12, "text": 4, "another": 4, "elsewhere": 4, "salted": 0}


def test_keys_of_text_are_what_they_were():

    memory = KvMemory(media_config())
    roots = memory.roots("")
    text, media = (Sequence(memory, list(range(12)), roots, items) for items in ((), (item("x", 5, tokens=2),)))
    keys = [page_key(roots[0], [0, 1, 2, 3])]
    keys.append(page_key(keys[0], [4, 5, 6, 7]))
    assert [text._key(0, 0), text._key(0, 1)] == keys
    assert media._key(0, 0) == keys[0] and media._key(0, 1) != keys[1]


def test_a_page_inside_an_image_knows_where_in_it_it_lies():
    """Two pages of equal ids in one long image differ, though every one is covered by it alone."""

    media = (item("x", 1, tokens=30),)
    extras = [page_extra(media, start, start + 4) for start in (0, 4, 8)]
    assert len(set(extras)) == 3
    assert page_extra(media, 32, 36) == b""
    assert page_extra((item("x", 0, tokens=2), item("y", 2, tokens=2)), 0, 4) != page_extra(
        (item("x", 0, tokens=2),), 0, 4
    )


def test_nothing_is_pulled_where_it_is_encoded():
    node = Node(media_config("i", "EPD"))
    req = asked("a", item("x", 1), item("y", 9))
    local(node, req)
    staged = encode(node, req)
    assert not feed(node, req, 0, 1, key=staged.handle.key, owner=node.core.ref)
    bring(node, "x", "y")
    node.run()
    check(node, req)
    ends = {end.role: end.status for end in node.reports(TaskEnded)}
    assert ends == {Role.ENCODE: Status.OK, Role.DECODE: Status.OK}
    assert not [m for m in node.messages if isinstance(m, StartPull)] and not node.device.shelf
    assert_free(node)


def test_an_encode_task_here_that_ends_without_embeddings_is_a_try():
    node = Node(media_config("i", "EPD"))
    req = asked("a", item("x", 1))
    local(node, req)
    for turn in range(3):
        staged = encode(node, req)
        feed(node, req, 0, key=staged.handle.key, owner=node.core.ref)
        node.now += 2.0
        node.ready()
        assert len(wanted(node)) == min(turn + 2, 3)
    (end,) = [end for end in node.reports(TaskEnded) if end.role is Role.DECODE]
    assert end.status is Status.UNAVAILABLE
    assert_free(node)


def test_what_is_encoded_here_for_others_is_waited_for():
    node = Node(media_config("i", "EPD"))
    encode(node, asked("far", item("x", 4)))
    req = asked("a", item("x", 1))
    local(node, req)
    assert not wanted(node)
    bring(node, "x")
    node.run()
    check(node, req)
    assert not wanted(node)


def test_two_instances_that_wait_for_each_other_do_not_wait_for_ever():
    """What is being pulled is encoded here all the same once its pixels are here and somebody wants it encoded."""
    node = Node(media_config("i", "EPD"))
    req = asked("a", item("x", 1))
    local(node, req)
    (pull,) = feed(node, req, 0, key=5)
    encode(node, asked("far", item("x", 4)))
    bring(node, "x")
    assert [m.key for m in node.messages if isinstance(m, CancelPull)] == [pull.source_key]
    node.run()
    check(node, req)


def test_a_prompt_with_media_is_refused_for_good_where_it_can_never_be_computed():
    reasons = []
    for node, req in (
        (prompt_node(media_pages=0), asked("a", item("x", 1))),
        (prompt_node(media_pages=3), asked("a", item("x", 1, tokens=5), item("y", 9, tokens=4))),
        (prompt_node(), asked("a", item("x", 4), item("y", 6))),
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
    node = prompt_node(num_pages=8, prefix_cache=False, max_num_seqs=2)
    older, req = asked("o", max_tokens=20, text=4), asked("a", item("x", 1, tokens=6), max_tokens=9)
    local(node, older)
    serve(node, req)
    node.run()
    assert wanted(node) == [("a", (0,))], "the embeddings were in the store still"
    assert node.core.media_counts.found == 1
    check(node, older)
    check(node, req)
    (end,) = [end for end in node.reports(TaskEnded) if end.request == "a"]
    assert end.preemptions == 1
    assert_free(node)


def test_a_resumed_prompt_with_media_is_computed_for_its_puller_and_draws_nothing():
    node = prompt_node("P")
    req = asked("a", item("x", 1))
    node.command(StartPrefill(replace(req, attempt=2), 0, 5.0, (SampleState(0, (3, 4)),)))
    (pull,) = feed(node, replace(req, attempt=2), 0)
    pulled(node, replace(req, attempt=2), pull, "x")
    node.run()
    assert not node.tokens("a") and node.reports(PrefillDone)
    node.send(StagedReleased(node.reports(Staged)[0].handle.key))
    assert_free(node)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 4), (0, 0, 2)])
@pytest.mark.parametrize(("offset", "whole"), [(1, True), (3, False)])
def test_a_sample_without_outputs_goes_on_where_there_are_no_embeddings(offset: int, whole: bool, counts, caching):
    """Media lie in the prompt's last page; its last token, of text, is computed again over the KV that came."""
    req = replace(asked("a", item("x", offset), text=1, n=len(counts), max_tokens=6), attempt=2)
    assert (len(req.prompt) % 4 == 0) == whole
    resumed = tuple(
        SampleState(sample, tuple(expected_outputs(req, 64, sample)[0][:count])) for sample, count in enumerate(counts)
    )
    prefill, decode = prompt_node("P"), Node(media_config("d", "D", media_pages=0, prefix_cache=caching))
    prefill.command(StartPrefill(req, 0, 5.0, resumed))
    (pull,) = feed(prefill, req, 0)
    pulled(prefill, req, pull, "x")
    prefill.run()
    (staged,) = prefill.reports(Staged)
    decode.command(ReserveDecode(req, 5.0, resumed))
    (kv,) = decode.command(StartDecode("a", staged.handle, 2))
    assert isinstance(kv, StartPull)
    for at, page in enumerate(kv.pages):
        decode.device.pages[page] = list(prefill.device.pages[prefill.exported[staged.handle.key][at]])
    decode.send(Imported("a", Continuation(req, resumed), StageTimes(), 2))
    decode.run()
    assert [(end.status, end.preemptions) for end in decode.reports(TaskEnded)] == [(Status.OK, 0)]
    for sample, count in enumerate(counts):
        drawn = [token.token for token in decode.tokens("a", sample)]
        assert drawn == expected_outputs(req, 64, sample)[0][count:]
    starts = [row.start for plan in decode.device.plans for row in plan.rows]
    assert min(starts) == len(req.prompt) - 1 and decode.core.resources().idle


def test_a_lost_pool_forgets_everything_and_cancels_pulls():
    node = prompt_node()
    req = asked("a", item("x", 1))
    local(node, req)
    (pull,) = feed(node, req, 0)
    messages = node.core.reset(InstanceRef("i", 9))
    assert [m.key for m in messages if isinstance(m, CancelPull)] == [pull.source_key]
    node.core.audit()
    assert_free(node)


def test_a_feed_that_comes_too_late_ends_the_encode_task_here():
    node = Node(media_config("i", "EPD"))
    req = asked("a", item("x", 1), max_tokens=20)
    local(node, req)
    staged = encode(node, req)
    bring(node, "x")
    for _ in range(4):
        node.ready()
        node.done()
    assert node.tokens("a") and not node.reports(TaskEnded)
    feed(node, req, 0, key=staged.handle.key, owner=node.core.ref)
    assert [(end.role, end.status) for end in node.reports(TaskEnded)] == [(Role.ENCODE, Status.OK)]
    node.run()
    check(node, req)
    assert_free(node)


def test_an_encode_task_that_waits_for_room_keeps_what_is_encoded_meanwhile():
    """The pixels are gone once an item is encoded for somebody: the task could not have it encoded again."""
    node = Node(media_config("i", "EPD", media_pages=6))
    full = encode(node, asked("f", item("w", 0, tokens=12)))
    bring(node, "w")
    node.run()
    near = asked("near", item("x", 1, tokens=4))
    local(node, near)
    encode(node, asked("far", item("x", 0, tokens=4), item("z", 4, tokens=8)))
    bring(node, "x", "z")
    node.run()
    check(node, near)
    local(node, asked("other", item("v", 1, tokens=8)))
    node.send(StagedReleased(full.handle.key))
    node.run()
    assert node.device.encoded == ["w", "x", "z"]
    assert [done.request for done in node.reports(EncodeDone)] == ["f", "far"]


def test_what_is_about_to_be_encoded_here_is_not_pulled():
    node = Node(media_config("i", "EPD"))
    encode(node, asked("far", item("x", 4)))
    bring(node, "x")
    req = asked("a", item("x", 1))
    local(node, req)
    assert not feed(node, req, 0)
    node.run()
    check(node, req)
    assert node.device.encoded == ["x"]

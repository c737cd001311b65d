"""Encode, prefill and decode taken apart on one real worker: tokens are those of one instance with all roles, and of a dense forward pass."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import grpc
import pytest

from tests.runtime.worker.media_bench import SLOTS, TOKENS, TOY, MediaBench, expected, item
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import (
    AbortTask,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    Granted,
    MediaWanted,
    ReserveDecode,
    Staged,
    StartDecode,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance import renewing

pytestmark = pytest.mark.limit(300)
COUNT = 6
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def bench() -> Iterator[MediaBench]:
    bench = MediaBench()
    yield bench
    bench.close()


def ask(*seeds: int, text: int = 7) -> Request:
    """`text` tokens, then for every picture its placeholders and a token."""
    prompt, media = list(range(40, 40 + text)), []
    for seed in seeds:
        media.append(item(seed, len(prompt)))
        prompt += [*[259] * TOKENS, 61]
    params = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
    return Request(f"r{next(NUMBERS)}", "gw", "toy", tuple(prompt), params, media=tuple(media))


def tokens_of(bench: MediaBench, request: Request) -> list[int]:
    return [token.token for token in bench.finished(request)[0]]


def start_split(bench: MediaBench, request: Request) -> None:
    """Reservation, prefill and the decode that pulls from it."""
    bench.send("d", ReserveDecode(request, 60.0))
    granted = bench.report(request, Granted)
    bench.send("p", StartPrefill(request, granted.cached_tokens, 60.0))
    staged = bench.report(request, Staged)
    bench.send("d", StartDecode(request.id, staged.handle))


def test_three_instances_give_the_tokens_of_a_dense_forward_pass(bench: MediaBench) -> None:
    request = ask(1, 2)
    answer = expected(request, [1, 2], COUNT)  # first: it compiles
    before = bench.wait_idle()
    start_split(bench, request)
    wanted = bench.wanted(request)
    assert wanted.items == (0, 1)
    staged = bench.feed(request, "p", (0, 1))
    assert staged.lacking == (0, 1)
    assert [bench.bring("e", seed) for seed in (1, 2)] == [(True, True)] * 2
    assert tokens_of(bench, request) == answer
    assert bench.report(request, EncodeDone).encoded == 2
    assert bench.report(request, TaskEnded, Role.ENCODE).status is Status.OK
    after = bench.wait_idle()
    gained = {
        name: {key: after[name].counters[key] - value for key, value in before[name].counters.items()} for name in after
    }
    assert (gained["e"]["encoded_items"], gained["e"]["encoded_patches"]) == (2, 2 * SLOTS)
    assert gained["e"]["media_bytes_offered"] == gained["p"]["media_bytes_received"] > 2 * TOKENS * 64 * 4 - 1
    assert after["e"].resources["shelf_bytes"] == 0 and after["e"].resources["media_pages_cached"] == 4
    assert [gained[name]["compiled_after_ready"] for name in gained] == [0] * 4
    assert "kv_bytes_offered" not in after["e"].counters and "media_pages_total" not in after["d"].resources


def test_an_instance_that_encodes_has_no_decoder_and_no_kv_on_its_device(bench: MediaBench) -> None:
    """Bytes follow from shapes: embeddings of the toy model are 64 numbers of float32, and so are keys and values of a layer."""
    states = bench.snapshots()
    e, p, d, epd = (states[name].resources for name in ("e", "p", "d", "epd"))
    page = MediaBench.OPTIONS["page_size"] * 64 * 4
    pool = MediaBench.OPTIONS["media_pages"] * page
    assert [state["device_media_pool_bytes"] for state in (e, p, d, epd)] == [pool, pool, 0, pool]
    assert [state["device_encoder_bytes"] > 0 for state in (e, p, d, epd)] == [True, False, False, True]
    assert e["device_encoder_bytes"] == epd["device_encoder_bytes"]
    assert (e["device_decoder_bytes"], e["device_kv_pool_bytes"]) == (0, 0)
    assert [state["device_kv_pool_bytes"] for state in (p, d, epd)] == [64 * 2 * 2 * page] * 3
    assert d["device_decoder_bytes"] == epd["device_decoder_bytes"] < p["device_decoder_bytes"], (
        "norms are on both devices"
    )


def test_what_is_known_is_neither_brought_nor_encoded_again(bench: MediaBench) -> None:
    """The prompt's store has the picture; the encoder's has, too; and the prefix cache has the prompt."""
    first, second = ask(3, text=9), ask(3, text=10)
    start_split(bench, first)
    bench.wanted(first)
    bench.feed(first, "p", (0,))
    bench.bring("e", 3)
    assert tokens_of(bench, first) == expected(first, [3], COUNT)
    before = bench.wait_idle()
    start_split(bench, second)  # other tokens before the picture: no page of KV is the same
    assert tokens_of(bench, second) == expected(second, [3], COUNT)
    assert bench.heard(second, MediaWanted) == []
    third = ask(3)
    bench.send("e", StartEncode(third, (0,), 5.0, 5.0))
    assert bench.report(third, EncodeDone).encoded == 0
    bench.send("e", AbortTask(third.id, Status.OK, "done", Role.ENCODE))
    after = bench.wait_idle()
    assert after["e"].counters["encoded_items"] == before["e"].counters["encoded_items"]
    assert after["e"].counters["media_items_found"] == before["e"].counters["media_items_found"] + 1
    assert bench.bring("e", 3) == (False, False), "nobody needs it now"


def test_one_instance_with_all_roles_gives_the_same(bench: MediaBench) -> None:
    request = ask(1, 2)
    bench.send("epd", StartLocal(request))
    wanted = bench.wanted(request)
    staged = bench.feed(request, "epd", wanted.items, encode="epd")
    for index in staged.lacking:
        bench.bring("epd", index + 1)
    assert tokens_of(bench, request) == expected(request, [1, 2], COUNT)
    moved = bench.wait_idle()["epd"].counters
    assert moved["media_bytes_offered"] == moved["media_bytes_received"] == 0, "on one instance nothing moves"


def test_text_goes_on_while_a_prompt_waits_for_its_picture(bench: MediaBench) -> None:
    waiting, text = ask(4), ask()
    bench.send("epd", StartLocal(waiting))
    bench.wanted(waiting)
    bench.send("epd", StartLocal(text))
    assert tokens_of(bench, text) == expected(text, [], COUNT)
    bench.feed(waiting, "epd", (0,), encode="epd")
    bench.bring("epd", 4)
    assert tokens_of(bench, waiting) == expected(waiting, [4], COUNT)


def test_an_encoder_that_is_lost_is_asked_for_again_and_another_one_serves(bench: MediaBench) -> None:
    request = ask(5)
    start_split(bench, request)
    bench.wanted(request)
    bench.feed(request, "p", (0,))
    bench.send("e", AbortTask(request.id, Status.UNAVAILABLE, "as if it were lost", Role.ENCODE))
    assert bench.wanted(request, times=2).items == (0,)
    bench.feed(request, "p", (0,), encode="epd")
    bench.bring("epd", 5)
    assert tokens_of(bench, request) == expected(request, [5], COUNT)
    bench.wait_idle()


def test_an_encoder_whose_device_fails_goes_on_under_a_new_epoch(bench: MediaBench) -> None:
    """Its tasks are gone with the old one, and so are pixels that were on their way to it."""
    request, old = ask(6), bench.ref("e")
    start_split(bench, request)
    bench.wanted(request)
    resets = len(bench.scheduler.of("instance_reset"))
    (live,) = (instance for instance in bench.process.instances if instance.info.ref.id == "e")
    bench.feed(request, "p", (0,))
    live._loop.call(lambda: live._parts.engine.media.pools[0][0].delete())  # type: ignore[union-attr]
    assert bench.bring("e", 6) == (True, True)
    bench.wait_for(lambda: len(bench.scheduler.of("instance_reset")) > resets)
    bench.wait_for(lambda: bench.ref("e") != old)
    with pytest.raises(grpc.aio.AioRpcError, match="is gone"):
        bench.bring("e", 6, ref=old)
    assert bench.wanted(request, times=2).items == (0,)
    bench.feed(request, "p", (0,))
    assert bench.bring("e", 6) == (True, True)
    assert tokens_of(bench, request) == expected(request, [6], COUNT)
    assert bench.wait_idle()["e"].resources["shelf_bytes"] == 0


def test_requests_that_share_pictures_and_outgrow_the_pools(bench: MediaBench) -> None:
    """Eight places for five pictures, of which each pool holds four; what is wanted is encoded, as a scheduler has it done."""
    seeds = [[20, 21], [21, 22], [23, 20], [24, 21]]
    requests = [ask(*pair) for pair in seeds]
    answers = [expected(request, pair, COUNT) for request, pair in zip(requests, seeds, strict=True)]
    for request in requests:
        start_split(bench, request)
    fed = dict.fromkeys(requests, 0)

    def serve() -> bool:
        for request, pair in zip(requests, seeds, strict=True):
            for wanted in bench.heard(request, MediaWanted)[fed[request] :]:
                fed[request] += 1
                bench.send("e", AbortTask(request.id, Status.OK, "its items are wanted again", Role.ENCODE))
                for index in bench.feed(request, "p", wanted.items).lacking:
                    bench.bring("e", pair[index])
        return all(any(end.role is Role.DECODE for end in bench.heard(request, TaskEnded)) for request in requests)

    deadline = time.monotonic() + 60
    while not serve():
        assert time.monotonic() < deadline, [bench.all_reports(request) for request in requests]
    assert [tokens_of(bench, request) for request in requests] == answers
    states = bench.wait_idle()
    assert [states[name].resources["media_pages_held"] for name in ("e", "p", "epd")] == [0, 0, 0]


def test_a_pool_full_of_staged_embeddings_stops_encoding_until_they_are_pulled(bench: MediaBench) -> None:
    """Eight pages, two a picture: the fifth waits for the room of others."""
    bench.wait_idle()
    requests = [ask(10 + number) for number in range(5)]
    for number, request in enumerate(requests):
        bench.send("e", StartEncode(request, (0,), 20.0, 20.0))
        bench.report(request, EncodeStaged)
        bench.bring("e", 10 + number)
    for request in requests[:4]:
        bench.report(request, EncodeDone)
    assert bench.snapshots()["e"].resources["media_pages_held"] == 8
    assert bench.heard(requests[4], EncodeDone) == []
    bench.send("e", AbortTask(requests[0].id, Status.OK, "not needed", Role.ENCODE))
    bench.report(requests[4], EncodeDone)
    for request in requests[1:]:
        bench.send("e", AbortTask(request.id, Status.OK, "not needed", Role.ENCODE))
    bench.wait_idle()


def test_a_shelf_full_of_pixels_that_wait_for_pages_takes_those_that_have_pages(bench: MediaBench) -> None:
    """Two tasks hold all eight pages and lack a picture each; the shelf, which has room for one, has one of a third task."""
    bench.wait_idle()
    instance = next(one for one in bench.process.instances if one.info.ref.id == "e")
    assert instance.door is not None
    shelf = instance.door._shelf
    limit, shelf._limit = shelf._limit, TOKENS * TOY.vision.patch_dim
    pairs = [(30, 31), (32, 33), (34,), (35,)]
    requests = [ask(*pair) for pair in pairs]
    try:
        for request, pair in zip(requests, pairs, strict=True):
            bench.send("e", StartEncode(request, tuple(range(len(pair))), 20.0, 20.0))
            bench.report(request, EncodeStaged)
        for seed in (30, 32):
            assert bench.bring("e", seed) == (True, True)
            while bench.snapshots()["e"].resources["shelf_bytes"]:  # until it is encoded
                time.sleep(0.01)
        assert bench.bring("e", 34) == (True, True)
        with pytest.raises(grpc.aio.AioRpcError, match="media shelf has 0 of 768 bytes left"):
            bench.bring("e", 35)
        for request, seed in zip(requests, (31, 33), strict=False):
            assert bench.bring("e", seed) == (True, True), "it has pages"
            bench.report(request, EncodeDone)
        bench.send("e", AbortTask(requests[0].id, Status.OK, "not needed", Role.ENCODE))
        bench.report(requests[2], EncodeDone)
        assert bench.bring("e", 35) == (True, True)
        bench.report(requests[3], EncodeDone)
    finally:
        shelf._limit = limit
        for request in requests[1:]:
            bench.send("e", AbortTask(request.id, Status.OK, "not needed", Role.ENCODE))
    assert bench.wait_idle()["e"].resources["shelf_bytes"] == 0


@pytest.mark.slow
def test_embeddings_that_wait_for_room_outlive_their_lease(bench: MediaBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "RENEW", 0.3)
    seeds = (
        (91, 92, 93),
        (94,),
        (95,),
    )  # in no other test: known pictures are not wanted. Those of the first two take all pages of the prompt's instance
    first, second, small = requests = [ask(*of, text=2) for of in seeds]
    answers = [expected(request, list(of), COUNT) for request, of in zip(requests, seeds, strict=True)]
    bench.wait_idle()
    for request in requests:
        start_split(bench, request)
        bench.wanted(request)
    bench.send("e", StartEncode(small, (0,), 20.0, 2.0))
    staged = bench.reports(small, EncodeStaged, 1)[-1]
    bench.send("p", FeedMedia(small.id, staged.handle, (0,), small.attempt))
    assert bench.bring("e", 95) == (True, True)
    bench.reports(small, EncodeDone, 1)
    time.sleep(4.0)  # two leases
    assert not bench.heard(small, TaskEnded) and len(bench.heard(small, MediaWanted)) == 1
    bench.feed(first, "p", (0, 1, 2), "epd")
    bench.feed(second, "p", (0,), "epd")
    assert [bench.bring("epd", seed) for seed in (91, 92, 93, 94)] == [(True, True)] * 4
    assert [tokens_of(bench, request) for request in requests] == answers
    assert len(bench.heard(small, MediaWanted)) == 1
    bench.wait_idle()

"""Requests with media through a real gateway: what is submitted, what it costs, and what is refused with the name of its part."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import pytest

from tests.runtime.gateway.calls import ask, finish, run, until
from tests.runtime.gateway.media.toys import PATCHES, PIECE_BYTES, PLACEHOLDER, TOKENS, ToyProcessor, image, vlm
from tests.runtime.gateway.toy_cluster import TOKENIZER, Order, cluster, never, serve_well
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.control import Progress
from triptych.runtime.core.instance import Role
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway import service
from triptych.runtime.gateway.media.asking import Asked, asked_media, without_data

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SOME: dict[str, Any] = {"sampling": {"max_tokens": 3, "temperature": 0}}


def shown(number: int, **fields: Any) -> pb.ContentPart:
    return pb.ContentPart(media=pb.Media(data=image(number), **fields))


def said(text: str) -> pb.ContentPart:
    return pb.ContentPart(text=text)


def chat(*messages: list[pb.ContentPart] | str) -> pb.Chat:
    made = pb.Chat()
    for message in messages:
        if isinstance(message, str):
            made.messages.add(role="user", content=message)
        else:
            made.messages.add(role="user", parts=message)
    return made


def encoded(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_a_chat_with_images_is_submitted_expanded_with_its_items():
    async def body():
        processor = ToyProcessor(pieces=2)
        async with cluster(vlm(), processor=processor) as c:
            question = chat("Hi", [shown(1), said("and"), shown(2, type="image")])
            outcome = await finish(c.stub.Generate(ask(chat=question, **SOME)))
            assert outcome.code is grpc.StatusCode.OK, outcome.details
            request = c.scheduler.last.request
            row = [PLACEHOLDER] * (2 * TOKENS)
            text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>user\n"
            expected = [
                *encoded(text),
                *row,
                *encoded("\nand\n"),
                *row,
                *encoded("<|im_end|>\n<|im_start|>assistant\n"),
            ]
            assert list(request.prompt) == expected
            first = len(encoded(text))
            second = first + len(row) + len(encoded("\nand\n"))
            places = [(item.offset, item.tokens, item.patches, item.grid, item.kind) for item in request.media]
            rest = (TOKENS, PATCHES, (1, 2, 2), MediaKind.IMAGE)
            assert places == [(at, *rest) for at in (first, first + TOKENS, second, second + TOKENS)]
            assert len({item.hash for item in request.media}) == 4
            assert (outcome.usage.prompt_tokens, outcome.usage.media_tokens) == (len(expected), 4 * TOKENS)
            assert outcome.timings.media_items == 4 and outcome.timings.media > 0

    run(body())


def test_a_prompt_says_where_its_media_belong_or_has_them_first():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:
            row = [PLACEHOLDER] * TOKENS
            media = [pb.Media(data=image(1)), pb.Media(data=image(2))]
            rows = [
                (ask("a<|pad|>b<|pad|>", media=media, **SOME), [*encoded("a"), *row, *encoded("b"), *row]),
                (ask("what?", media=media[:1], **SOME), [*row, *encoded("\nwhat?")]),
                (
                    ask(token_ids=pb.TokenIds(ids=[5, PLACEHOLDER, 6]), media=media[1:], **SOME),
                    [5, *row, 6],
                ),
                (ask("no media", **SOME), encoded("no media")),
            ]
            for request, expected in rows:
                assert (await finish(c.stub.Generate(request))).code is grpc.StatusCode.OK
                assert list(c.scheduler.last.request.prompt)[-len(expected) :] == expected
            assert c.scheduler.last.request.media == ()

    run(body())


def test_media_and_text_may_stand_in_any_place_of_a_prompt_of_one_item():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:
            request = ask(token_ids=pb.TokenIds(ids=[PLACEHOLDER]), media=[pb.Media(data=image(7))], **SOME)
            assert (await finish(c.stub.Generate(request))).code is grpc.StatusCode.OK
            (item,) = c.scheduler.last.request.media
            assert item == MediaItem(item.hash, MediaKind.IMAGE, 0, TOKENS, PATCHES, (1, 2, 2))

    run(body())


MANY = [pb.Media(data=image(1))] * 9
BAD = {
    "no source": (ask(chat=chat([said("a"), pb.ContentPart(media=pb.Media())])), "chat.messages[0].parts[1]: its source"),
    "empty data": (ask("a", media=[pb.Media(data=b"")]), "media[0]: data is not set"),
    "empty part": (ask(chat=chat("a", [pb.ContentPart()])), "chat.messages[1].parts[0]: it is empty"),
    "content and parts": (
        ask(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="a", parts=[said("b")])])),
        "chat.messages[0] has content and parts",
    ),
    "not an image": (
        ask(chat=chat([said("a")], [said("b"), pb.ContentPart(media=pb.Media(data=b"<svg/>"))])),
        "chat.messages[1].parts[1]: the item is of an unknown type",
    ),
    "another type": (ask(chat=chat([shown(1, type="audio/wav")])), "chat.messages[0].parts[0]: the item is declared as"),
    "cannot be decoded": (ask("a", media=[pb.Media(data=image(666))]), "media[0]: this image cannot be decoded"),
    "beside a chat": (ask(chat=chat("a"), media=[pb.Media(data=image(1))]), "media is set beside chat"),
    "too many": (ask("a", media=MANY), "the request has 9 media items"),
    "too few placeholders": (ask("a<|pad|>", media=MANY[:2]), "prompt: 1 of its tokens stand for media ('<|pad|>'), and 2"),
    "none brought": (ask("a<|pad|>"), "prompt: 1 of its tokens stand for media ('<|pad|>'), and 0 media"),
    "spelt in a chat": (ask(chat=chat([shown(1), said("<|pad|>")])), "chat: 2 of its tokens stand for media"),
    "no room": (ask("a" * 115, media=[pb.Media(data=image(1))] * 3), "the prompt has "),
}  # fmt: skip


def test_every_bad_medium_is_refused_with_the_name_of_its_part_and_takes_nothing_down():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:
            for name, (request, message) in BAD.items():
                outcome = await finish(c.stub.Generate(request))
                assert outcome.code is INVALID and outcome.details.startswith(message), (name, outcome.details)
                assert not outcome.responses
            unknown = await finish(c.stub.Generate(ask("a", media=[pb.Media(handle="media-1")])))
            assert unknown.code is grpc.StatusCode.NOT_FOUND and unknown.details.startswith("media[0]: no media with")
            assert not c.scheduler.orders
            assert (await finish(c.stub.Generate(ask("a", media=MANY[:1], **SOME)))).code is grpc.StatusCode.OK

    run(body())


def test_a_text_model_takes_no_media_and_says_so():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask(chat=chat("a", [said("b"), shown(1)]))))
            message = "chat.messages[1].parts[1]: toy takes no media; expected text"
            assert (outcome.code, outcome.details) == (INVALID, message)
            outcome = await finish(c.stub.Generate(ask(chat=chat([said("a"), said("b")]), **SOME)))
            assert outcome.code is grpc.StatusCode.OK, "parts of text are no media"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await c.stub.DeleteMedia(pb.DeleteMediaRequest(handle="x"))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert list((await c.stub.GetModelInfo(pb.GetModelInfoRequest())).media_kinds) == []

    run(body())


def test_the_model_tells_what_it_takes_and_media_cannot_be_tokenised():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor()) as c:
            info = await c.stub.GetModelInfo(pb.GetModelInfoRequest())
            assert (list(info.media_kinds), info.media_placeholder) == (["image", "video"], "<|pad|>")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await c.stub.Tokenize(pb.TokenizeRequest(chat=chat([shown(1)])))
            assert caught.value.code() is INVALID
            assert (caught.value.details() or "").startswith("chat.messages[0].parts[0]: media cannot be read here")

    run(body())


def test_when_open_requests_hold_too_much_media_the_next_is_refused_with_a_hint():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), max_media_bytes=PIECE_BYTES, retry_after=0.5) as c:
            c.scheduler.script = never
            first = c.stub.Generate(ask("a", media=[pb.Media(data=image(1))]))
            await until(lambda: len(c.scheduler.orders) == 1)
            outcome = await finish(c.stub.Generate(ask("a", media=[pb.Media(data=image(2))])))
            assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED and outcome.retry_after == "0.5"
            assert outcome.details.startswith("media[0]: open requests hold")
            first.cancel()
            await until(lambda: c.gateway.open_requests == 0)
            c.scheduler.script = serve_well
            assert (
                await finish(c.stub.Generate(ask("a", media=[pb.Media(data=image(2))], **SOME)))
            ).code is grpc.StatusCode.OK

    run(body())


def test_the_files_of_open_requests_are_bounded_too():
    async def body():
        async with cluster(vlm(), processor=ToyProcessor(), max_media_bytes=2 * PIECE_BYTES) as c:
            c.scheduler.script = never
            padded = b"IMG" + b"0" * PIECE_BYTES + b"1"
            first = c.stub.Generate(ask("a", media=[pb.Media(data=padded)]))
            await until(lambda: len(c.scheduler.orders) == 1)
            outcome = await finish(c.stub.Generate(ask("a", media=[pb.Media(data=padded)])))
            assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "bytes of media" in outcome.details
            first.cancel()
            await until(lambda: c.gateway.open_requests == 0)
            assert c.gateway.media is not None and c.gateway.media.sent_bytes == 0

    run(body())


def test_a_client_that_goes_away_while_its_media_are_processed_leaves_nothing():
    async def body():
        processor = ToyProcessor()
        async with cluster(vlm(), processor=processor) as c:
            processor.gate.clear()
            call = c.stub.Generate(ask("a", media=[pb.Media(data=image(1))]))
            await until(lambda: processor.calls == [image(1)])
            call.cancel()
            await until(lambda: processor.cancelled == 1 and c.gateway.open_requests == 0)
            slow = await finish(c.stub.Generate(ask("a", media=[pb.Media(data=image(1))], timeout=0.1)))
            assert slow.code is grpc.StatusCode.DEADLINE_EXCEEDED and "media were being processed" in slow.details

    run(body())


@pytest.mark.parametrize("form", ["media", "chat"])
def test_the_bytes_of_media_are_not_held_while_the_request_runs(form: str, monkeypatch: pytest.MonkeyPatch):
    """But for what gRPC has received, which it keeps until the call has ended."""
    came: list[pb.GenerateRequest] = []

    def watched(request: pb.GenerateRequest) -> list[Asked]:
        came.append(request)
        return asked_media(request)

    monkeypatch.setattr(service, "asked_media", watched)

    async def body():
        processor = ToyProcessor()
        async with cluster(vlm(), processor=processor) as c:
            c.scheduler.script = never
            request = (
                ask("a", media=[pb.Media(data=image(1))], **SOME)
                if form == "media"
                else ask(chat=chat([shown(1)]), **SOME)
            )
            call = c.stub.Generate(request)
            await until(lambda: len(c.scheduler.orders) == 1)
            held = sys.getrefcount(came[0]), sys.getrefcount(processor.calls[0])
            assert held == (2, 2), "by this test, and by asking"
            call.cancel()

    run(body())


def test_a_request_without_the_bytes_of_its_media_is_the_same_otherwise():
    question = chat("Hi", [shown(1), said("and"), shown(2, type="image"), pb.ContentPart(media=pb.Media(handle="h"))])
    question.add_generation_prompt = False
    sampling = {"max_tokens": 3, "temperature": 0, "stop": ["x"], "logit_bias": {3: 1.0}}
    plain = ask(chat=question, sampling=sampling, request_id="r", timeout=2.0, model="m", priority=3, cache_salt="s")
    lighter = without_data(plain)
    for message in plain.chat.messages:
        for part in message.parts:
            if part.media.data:
                part.media.ClearField("data")
    assert lighter == plain
    ids = ask(token_ids=pb.TokenIds(ids=[1, 2]), media=[pb.Media(data=b"x", type="image")], sampling=sampling)
    assert list(without_data(ids).token_ids.ids) == [1, 2] and without_data(ids).media[0] == pb.Media(type="image")
    assert without_data(ids).sampling == ids.sampling


def test_an_abort_ends_a_request_whose_media_wait_to_be_decoded_at_once():
    async def body():
        processor = ToyProcessor()
        async with cluster(vlm(), processor=processor) as c:
            processor.gate.clear()
            media = [pb.Media(data=image(1)), pb.Media(data=image(2))]
            call = asyncio.create_task(finish(c.stub.Generate(ask("a", media=media, request_id="r"))))
            await until(lambda: len(processor.calls) == 2)
            await c.stub.Abort(pb.AbortRequest(request_id="r"))
            outcome = await call
            assert outcome.code is grpc.StatusCode.CANCELLED and "'r' was aborted" in outcome.details
            await until(lambda: processor.cancelled == 2 and c.gateway.open_requests == 0)  # nobody decodes for it
            assert not c.scheduler.orders

    run(body())


def test_the_times_of_all_encode_tasks_of_the_last_attempt_are_added_up():
    async def body():
        async def script(order: Order) -> None:
            for seconds in (0.5, 0.25):
                times = StageTimes(compute=seconds, bytes_moved=100)
                order.notice(Progress(order.request.id, Role.ENCODE, times, order.request.attempt, encoded=2))
            if order.request.attempt == 1:
                order.interrupt(2)
            else:
                await c.noticed()  # or the last token may overtake them
                await serve_well(order)

        async with cluster(vlm(), processor=ToyProcessor()) as c:
            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask("a", media=[pb.Media(data=image(1))], **SOME)))
            timings = outcome.timings
            assert (timings.encode, timings.encode_tasks, timings.embedding_bytes) == (0.75, 2, 200)
            assert (timings.attempts, timings.encoded_items) == (2, 4)

    run(body())

"""Sounds at a gateway: cut into windows, each a request to the scheduler; one answer, one end, whatever happens to a window."""

from __future__ import annotations

import asyncio
import io
import re
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile

from tests.runtime.gateway.calls import ask, finish, run, until
from tests.runtime.gateway.media.toys import ToyProcessor, image
from tests.runtime.gateway.toy_cluster import Order, cluster, never, reply, serve_well, toy_model
from triptych.models.speech.presets import SPEECH_PRESETS, TOY_SPEECH_SETTINGS, toy_speech_tokenizer
from triptych.models.speech.tokens import SpeechTokens
from triptych.models.speech.windows import split_windows
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import Status, TriptychError
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.gateway.media.speech import SpeechProcessor, windows_of
from triptych.runtime.gateway.model import ServedModel, SpeechModel
from triptych.runtime.media.errors import DecoderLostError, MediaKindError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.pool import PoolConfig
from triptych.runtime.media.process import Reply

CONFIG = SPEECH_PRESETS["toy-whisper"]
TOKENS = SpeechTokens.from_vocabulary(toy_speech_tokenizer(), CONFIG, TOY_SPEECH_SETTINGS)
PROMPT = TOKENS.prompt("en")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
SOUND: dict[str, Any] = {"media": [pb.Media(data=image(1))], "speech": pb.SpeechOptions(language="en")}


def listens(**changes: Any) -> ServedModel:
    return toy_model(speech=SpeechModel(CONFIG, TOKENS), **changes)


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype="FLOAT")
    return out.getvalue()


def test_each_window_is_a_request_of_its_own_and_the_answer_is_one() -> None:
    async def body() -> None:
        async with cluster(listens(), processor=ToyProcessor(pieces=3)) as c:
            outcome = await finish(c.stub.Generate(pb.GenerateRequest(**SOUND, request_id="mine")))
            assert outcome.code is grpc.StatusCode.OK, outcome.details
            requests = [order.request for order in c.scheduler.orders.values()]
            assert [request.prompt for request in requests] == [PROMPT] * 3
            assert len({request.id for request in requests}) == 3
            items = [item for request in requests for item in request.media]
            assert len({item.hash for item in items}) == 3
            assert all(isinstance(item, MediaItem) and item.offset == 0 for item in items)
            sampling = requests[0].sampling
            assert (sampling.temperature, sampling.max_tokens) == (1.0, CONFIG.max_position // 2)
            assert outcome.text() == " ".join([reply(PROMPT, 0)] * 3)
            (prompt,) = outcome.of("prompt")
            assert (prompt.request_id, prompt.prompt_tokens) == ("mine", 3 * len(PROMPT))
            assert outcome.completions[0].finish_reason == "stop" and outcome.timings.media_items == 3
            assert outcome.usage.completion_tokens == len(outcome.tokens())
            await until(lambda: c.gateway.open_requests == 0)

    run(body())


def test_the_samples_of_a_window_are_brought_for_its_own_request() -> None:
    async def body() -> None:
        async with cluster(listens(), processor=ToyProcessor(pieces=2)) as c:

            async def script(order: Order) -> None:
                order.need(0)
                wanted = order.request.media[0].hash
                await until(lambda: any(key[1] == wanted for key in order.prefill.media.stored))
                await serve_well(order)

            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(pb.GenerateRequest(**SOUND)))
            assert outcome.code is grpc.StatusCode.OK and len(c.scheduler.orders) == 2
            await until(lambda: c.gateway.courier.active == 0)

    run(body())


def test_a_window_that_fails_ends_all_of_them() -> None:
    async def body() -> None:
        async with cluster(listens(), processor=ToyProcessor(pieces=3)) as c:

            async def script(order: Order) -> None:
                if len(c.scheduler.orders) == 2:
                    order.fail(Status.INTERNAL, "the test says so")
                else:
                    order.place()

            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(pb.GenerateRequest(**SOUND)))
            assert outcome.code is grpc.StatusCode.INTERNAL
            others = list(c.scheduler.orders.values())
            await until(lambda: sum(order.cancelled.is_set() for order in others) == 2)
            await until(lambda: c.gateway.open_requests == 0)

    run(body())


def test_an_abort_ends_all_windows() -> None:
    async def body() -> None:
        async with cluster(listens(), processor=ToyProcessor(pieces=12)) as c:
            c.scheduler.script = never
            call = asyncio.create_task(finish(c.stub.Generate(pb.GenerateRequest(**SOUND, request_id="long"))))
            await until(lambda: len(c.scheduler.orders) == 8)
            assert c.gateway.open_requests == 1
            await c.stub.Abort(pb.AbortRequest(request_id="long"))
            assert (await call).code is grpc.StatusCode.CANCELLED
            await until(lambda: all(order.cancelled.is_set() for order in c.scheduler.orders.values()))
            assert len(c.scheduler.orders) == 8

    run(body())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "text"}, "^prompt is set; toy writes down speech"),
        ({"media": []}, r"^media has 0 entries"),
        ({"media": [pb.Media(data=image(1))] * 2}, "^media has 2 entries"),
        ({"speech": pb.SpeechOptions()}, "^speech.language: no language None; name one of de, en"),
        ({"speech": pb.SpeechOptions(language="xx")}, "^speech.language: no language 'xx'"),
        ({"sampling": pb.SamplingOptions(n=2)}, "^n is 2"),
        ({"sampling": pb.SamplingOptions(prompt_logprobs=0)}, "^prompt_logprobs is set"),
    ],
)
def test_what_a_model_of_speech_does_not_take_is_refused(changes: dict[str, Any], words: str) -> None:
    async def body() -> None:
        async with cluster(listens(), processor=ToyProcessor()) as c:
            request = pb.GenerateRequest(**(SOUND | changes))
            outcome = await finish(c.stub.Generate(request))
            assert outcome.code is INVALID
            assert re.search(words, outcome.details), outcome.details
            assert not c.scheduler.orders

    run(body())


def test_other_models_write_down_nothing() -> None:
    async def body() -> None:
        async with cluster(toy_model()) as c:
            outcome = await finish(c.stub.Generate(ask(prompt="hi", speech=pb.SpeechOptions(language="en"))))
            assert outcome.code is INVALID and "does not write down speech" in outcome.details

    run(body())


def processor() -> SpeechProcessor:
    return SpeechProcessor(CONFIG, MediaLimits(), PoolConfig(processes=1, start_seconds=60.0))


def test_windows_are_those_of_the_reference_at_sixteen_kilohertz() -> None:
    sound = (0.3 * np.random.default_rng(1).standard_normal(35_000)).astype(np.float32)

    async def body() -> None:
        p = processor()
        p.start()
        try:
            data = wav(sound)
            assert p.kind(data, "audio") is MediaKind.AUDIO
            pieces = await p.process(data, MediaKind.AUDIO, p.identity(data))
            expected = split_windows(np.clip(sound, -1, 1), CONFIG.samples)
            assert [piece.data for piece in pieces] == [window.tobytes() for window in expected]
            assert [piece.pixel_grid for piece in pieces] == [(window.size, 1, 1) for window in expected]
            assert len({piece.hash for piece in pieces}) == len(pieces) > 2
            for piece in pieces:
                assert (piece.tokens, piece.patches, piece.attended) == (50, 50, True)
                assert piece.at(0).taken == 0
            (slow,) = await p.process(wav(sound[:4000], 8_000), MediaKind.AUDIO, "0" * 32)
            assert slow.shape == (8_000,)
            with pytest.raises(TriptychError):
                await p.process(data[:30], MediaKind.AUDIO, "1" * 32)
        finally:
            await p.close()

    run(body())


def test_what_is_no_sound_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MediaKindError, match="takes sound"):
        processor().kind(b"\x89PNG\r\n\x1a\n" + bytes(30), "")


@pytest.mark.parametrize(
    ("samples", "lengths"),
    [
        (np.zeros(10, np.float32), [9]),
        (np.zeros(10, np.float64), [10]),
        (np.zeros(CONFIG.samples + 1, np.float32), [CONFIG.samples + 1]),
        (np.zeros(10, np.float32), [10, 0]),
        (np.zeros(10, np.float32), "10"),
        (np.full(10, np.nan, np.float32), [10]),
        (np.zeros((5, 2), np.float32), [10]),
        (np.zeros(10, np.float32), [True] * 10),
    ],
)
def test_what_a_decoder_process_says_must_agree(samples: np.ndarray, lengths: Any) -> None:
    with pytest.raises(DecoderLostError):
        windows_of(Reply(samples, {"lengths": lengths}), CONFIG, "0" * 32)

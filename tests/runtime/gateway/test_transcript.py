"""Windows to one answer: texts in order with one space between them, whatever comes first, and one failure for all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway import windows
from triptych.runtime.gateway.live import Write
from triptych.runtime.gateway.media.pieces import Piece
from triptych.runtime.gateway.transcript import Transcript
from triptych.runtime.gateway.windows import transcribe_windows


def said(texts: Sequence[str], finish: str = "stop", **times: Any) -> list[pb.GenerateResponse]:
    """What a window of its own answers."""
    deltas = [pb.GenerateResponse(delta=pb.Delta(text=text, tokens=[pb.TokenDetail(token=1)])) for text in texts]
    usage = pb.Usage(prompt_tokens=4, completion_tokens=len(texts), cached_tokens=1)
    return [
        pb.GenerateResponse(prompt=pb.PromptInfo(request_id="r", prompt_tokens=4)),
        *deltas,
        pb.GenerateResponse(completion=pb.Completion(finish_reason=finish)),
        pb.GenerateResponse(summary=pb.Summary(usage=usage, timings=pb.Timings(**times))),
    ]


def joined(*answers: list[pb.GenerateResponse]) -> list[pb.GenerateResponse]:
    transcript = Transcript("r", len(answers), 75.0)
    shown = [transcript.feed(response) for answer in answers for response in answer]
    return [response for response in shown if response is not None] + list(transcript.end())


@pytest.mark.parametrize(
    "spoken",
    [
        [[" And", " so"], [" it", " goes."]],
        [[" And ", " ", "so "], ["  ", " it"]],
        [["And"], [" ", "\n"], [], ["so"]],
        [[" "], ["so it goes"]],
        [[], []],
    ],
)
def test_texts_are_joined_as_the_reference_joins_them(spoken: list[list[str]]) -> None:
    whole = "".join(response.delta.text for response in joined(*map(said, spoken)))
    assert whole == " ".join(text for window in spoken if (text := "".join(window).strip()))


def test_one_answer_has_what_one_request_has() -> None:
    first = said(
        [" a", " b"], prefill=1.0, queue=0.5, total=2.0, first_token=0.7, prefill_instance="prefill-0", media=0.1
    )
    second = said([" c"], "length", prefill=2.0, queue=0.25, total=5.0, first_token=4.0, prefill_instance="prefill-1", media=0.1)  # fmt: skip
    prompt, *deltas, completion, summary = joined(first, second)
    assert (prompt.prompt.request_id, prompt.prompt.prompt_tokens) == ("r", 8)
    assert [len(delta.delta.tokens) for delta in deltas] == [1, 1, 1]
    assert completion.completion.finish_reason == "length"
    usage, timings = summary.summary.usage, summary.summary.timings
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.audio_seconds) == (8, 3, 2, 75.0)
    assert (timings.prefill, timings.queue, timings.total, timings.first_token, timings.media) == (3.0, 0.5, 5.0, 0.7, 0.1)  # fmt: skip
    assert timings.prefill_instance == "prefill-0, prefill-1"


def piece(number: int) -> Piece:
    return Piece(f"{number}", MediaKind.AUDIO, 1, 1, (1, 1, 1), (1, 1, 1), (1,), b"", 0, attended=True)


def run(count: int, delays: dict[int, float], fails: int | None = None) -> tuple[str, int]:
    """The text of `count` windows that take so long (seconds), and how many were under way at most."""
    under_way = most = 0

    async def transcribe(index: int, window: Piece, heard: Write) -> None:
        nonlocal under_way, most
        assert window.hash == str(index)
        under_way += 1
        most = max(most, under_way)
        try:
            for response in said([f" {index}"]):
                await heard(response)
                await asyncio.sleep(delays.get(index, 0.0))
                if index == fails:
                    raise EngineError(f"window {index}")
        finally:
            under_way -= 1

    async def whole() -> str:
        shown: list[pb.GenerateResponse] = []

        async def write(response: pb.GenerateResponse) -> None:
            shown.append(response)

        await transcribe_windows([piece(n) for n in range(count)], transcribe, Transcript("r", count, 1.0), write)
        assert shown[-1].WhichOneof("kind") == "summary"
        return "".join(response.delta.text for response in shown)

    text = asyncio.run(whole())
    assert under_way == 0
    return text, most


def test_what_is_heard_first_waits_for_what_comes_before_it() -> None:
    assert run(4, {0: 0.02, 2: 0.01}) == ("0 1 2 3", 4)


def test_so_many_windows_at_once_and_no_more() -> None:
    text, most = run(20, {})
    assert text == " ".join(map(str, range(20))) and most == windows.AT_ONCE


@pytest.mark.parametrize("fails", [0, 3, 11])
def test_if_one_fails_all_do_and_nothing_goes_on(fails: int) -> None:
    with pytest.raises(EngineError, match=f"window {fails}"):
        run(12, {0: 0.01}, fails)

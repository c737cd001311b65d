"""A stream is held to what is known of it: lost, duplicated and wrong tokens are told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import pytest

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import Chunk, Result
from triptych.runtime.core.errors import InstanceLostError, Status
from triptych.tools.trials.load import Outcome, Spec, send

PROMPT = 4
SPEC = Spec("toy", {"token_ids": [1] * PROMPT}, expected=(((10, 11, 12), "length"),))


class FakeStream:
    """Gives (offset, token) pairs, then ends as told."""

    def __init__(self, tokens: Sequence[tuple[int, int]], finish: str | None, error: Exception | None):
        self.result = Result()
        self._responses = [pb.GenerateResponse(prompt=pb.PromptInfo(request_id="r", prompt_tokens=PROMPT))]
        for offset, token in tokens:
            detail = pb.TokenDetail(token=token, position=PROMPT + offset)
            self._responses.append(pb.GenerateResponse(delta=pb.Delta(tokens=[detail])))
        if finish is not None:
            self._responses.append(pb.GenerateResponse(completion=pb.Completion(finish_reason=finish)))
        self._error = error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._responses:
            self.result.feed(self._responses.pop(0))
            return Chunk(0)
        raise self._error or StopAsyncIteration


def outcome(
    tokens: Sequence[tuple[int, int]], finish: str | None = "length", error: Exception | None = None
) -> Outcome:
    class FakeClient:
        def generate(self, **_: Any) -> FakeStream:
            return FakeStream(tokens, finish, error)

    client: Any = FakeClient()
    return asyncio.run(send(client, SPEC))


GOOD = [(0, 10), (1, 11), (2, 12)]


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (GOOD, (0, 0, 0)),
        (GOOD[:2], (1, 0, 0)),
        ([GOOD[0], GOOD[2]], (1, 0, 0)),
        ([GOOD[0], GOOD[0], *GOOD[1:]], (0, 1, 0)),
        ([(0, 10), (1, 99), (2, 12)], (0, 0, 1)),
        ([*GOOD, (3, 13)], (0, 0, 1)),
    ],
    ids=["exact", "short", "gap", "twice", "other", "too many"],
)
def test_what_differs_is_counted(tokens: list[tuple[int, int]], found: tuple[int, int, int]) -> None:
    result = outcome(tokens)
    assert result.status is Status.OK and result.admitted
    assert (result.lost, result.duplicated, result.wrong) == found and result.exact == (found == (0, 0, 0))


def test_another_end_is_wrong() -> None:
    assert outcome(GOOD, finish="stop").wrong == 1


def test_a_failed_stream_must_be_right_as_far_as_it_came() -> None:
    lost = InstanceLostError("gone")
    failed = outcome(GOOD[:1], None, lost)
    assert failed.status is Status.UNAVAILABLE and failed.reason == "gone" and failed.exact
    assert outcome([GOOD[0], GOOD[2]], None, lost).lost == 1

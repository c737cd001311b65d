"""A stream is held to what is known of it: lost, duplicated and wrong tokens are told apart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Self

import pytest

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import Chunk, Result, Uploaded
from triptych.runtime.core.errors import InstanceLostError, NotFoundError, Status
from triptych.tools.trials.load import Load, Outcome, Spec, send
from triptych.tools.trials.uploads import Uploads

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


class ForgetfulClient:
    """A gateway that is started again after its first request: it knows no upload of before."""

    def __init__(self) -> None:
        self.uploaded: list[bytes] = []
        self.asked: list[list[Any]] = []
        self._known: set[str] = set()

    async def upload_media(self, data: bytes) -> Uploaded:
        self.uploaded.append(data)
        self._known.add(f"handle {len(self.uploaded)}")
        return Uploaded(f"handle {len(self.uploaded)}")

    def generate(self, images: list[Any], **_: Any) -> FakeStream:
        self.asked.append(images)
        if len(self.asked) == 2:
            self._known.clear()
        if not all(image.handle in self._known for image in images):
            return FakeStream([], None, NotFoundError("no such upload"))
        return FakeStream(GOOD, "length", None)


def test_what_was_uploaded_is_used_again_and_brought_again_when_it_is_lost() -> None:
    client, uploads = ForgetfulClient(), Uploads()
    spec = Spec("uploaded", {}, SPEC.expected, images=(b"one", b"two", b"one"), uploaded=True)
    given: Any = client
    first, second = (asyncio.run(send(given, spec, uploads)) for _ in range(2))
    assert first.exact and second.exact and second.status is Status.OK
    assert client.uploaded == [b"one", b"two", b"one", b"two"], "once each, and again when the handles were lost"
    assert [[image.handle for image in images] for images in client.asked] == [
        ["handle 1", "handle 2", "handle 1"],
        ["handle 1", "handle 2", "handle 1"],
        ["handle 3", "handle 4", "handle 3"],
    ]


def test_fresh_requests_are_taken_in_turn_and_none_twice_before_all_were() -> None:
    fresh = [Spec(f"new {number}", {}) for number in range(5)]
    load = Load(lambda: None, [SPEC], 1, fresh=fresh)  # type: ignore[arg-type,return-value]
    drawn = [load._next(random.Random(number)) for number in range(100)]
    taken = [spec.name for spec in drawn if spec is not SPEC]
    assert taken[:7] == ["new 0", "new 1", "new 2", "new 3", "new 4", "new 0", "new 1"]
    assert SPEC in drawn

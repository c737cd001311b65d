"""The client's side of gateway tests: build a request, call, read the stream to its end, wait for things."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from triptych.proto.v1 import inference_pb2

T = TypeVar("T")
PATIENCE = 40.0  # seconds until a wait counts as a hang, on any machine


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something that the loop will bring about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Outcome:
    """A finished Generate call."""

    responses: list[inference_pb2.GenerateResponse]
    code: grpc.StatusCode
    details: str
    retry_after: str | None

    def of(self, kind: str) -> list[Any]:
        return [getattr(r, kind) for r in self.responses if r.WhichOneof("kind") == kind]

    def text(self, sample: int = 0) -> str:
        return "".join(d.text for d in self.of("delta") if d.sample == sample)

    def tokens(self, sample: int = 0) -> list[int]:
        return [t.token for d in self.of("delta") if d.sample == sample for t in d.tokens]

    def positions(self, sample: int = 0) -> list[int]:
        return [t.position for d in self.of("delta") if d.sample == sample for t in d.tokens]

    @property
    def completions(self) -> dict[int, inference_pb2.Completion]:
        return {c.sample: c for c in self.of("completion")}

    @property
    def usage(self) -> inference_pb2.Usage:
        (summary,) = self.of("summary")
        return summary.usage

    @property
    def timings(self) -> inference_pb2.Timings:
        (summary,) = self.of("summary")
        return summary.timings


async def finish(call: Any) -> Outcome:
    """Read a Generate call to its end, whatever that is."""
    responses = []
    try:
        async for response in call:
            responses.append(response)
    except grpc.aio.AioRpcError as error:
        hints = [str(entry[1]) for entry in error.trailing_metadata() or () if entry[0] == "retry-after"]
        retry = hints[0] if hints else None
        return Outcome(responses, error.code(), error.details() or "", retry)
    return Outcome(responses, grpc.StatusCode.OK, "", None)


def ask(prompt: str = "hello", **fields: Any) -> inference_pb2.GenerateRequest:
    """A request; `sampling` is a dict."""
    sampling = inference_pb2.SamplingOptions(**fields.pop("sampling", {}))
    if not {"chat", "token_ids"} & fields.keys():
        fields["prompt"] = prompt
    return inference_pb2.GenerateRequest(sampling=sampling, **fields)


def run(body: Awaitable[T]) -> T:
    """Run one async test body, with a limit."""

    async def limited() -> T:
        async with asyncio.timeout(100):
            return await body

    return asyncio.run(limited())

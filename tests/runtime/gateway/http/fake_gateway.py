"""A real gRPC server with an honest toy model behind the real HTTP server, each test's world in one background thread.

Sample s of a prompt answers with the characters of `reply(prompt, s)`, a token each (its id is the character's code), then stops. What a test wants to
go wrong it sets on `FakeGateway`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from triptych.proto.v1 import inference_pb2 as pb
from triptych.proto.v1 import inference_pb2_grpc
from triptych.runtime.gateway.http.config import HttpConfig
from triptych.runtime.gateway.http.server import HttpServer

MODEL = "toy"
CONTEXT = 128


def text_of(request: pb.GenerateRequest) -> str:
    """The prompt as text, whatever form it came in; a chat is `role:content` lines, a sound its language, its task and its bytes as characters."""
    if request.HasField("speech"):
        return f"{request.speech.language}{'>' if request.speech.translate else '='}{request.media[0].data.decode('latin-1')}"
    kind = request.WhichOneof("input")
    if kind == "prompt":
        return request.prompt
    if kind == "token_ids":
        return "".join(map(chr, request.token_ids.ids))
    return "\n".join(f"{m.role}:{m.content}" for m in request.chat.messages)


def reply(prompt: str, sample: int) -> str:
    """What the toy model says: different for every prompt and sample."""
    return f"{sample}é{prompt[::-1]}"


class FakeGateway(inference_pb2_grpc.InferenceServicer):
    """Triptych's gRPC API, remembering what it was asked.

    Attributes:
        fail_after: (tokens of sample 0 after which the call fails, status, message, retry hint in seconds).
        delay: seconds before each token.
        cancelled: requests whose client went away, by id.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.cancelled: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.fail_after: tuple[int, grpc.StatusCode, str, float | None] | None = None
        self.delay = 0.0

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        try:
            async for response in self._generate(request, context):
                yield response
        except asyncio.CancelledError:
            self.cancelled[request.request_id] = self.sent.get(request.request_id, 0)
            raise

    async def _generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        if request.model not in ("", MODEL):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.model!r} is not served here")
        prompt, options = text_of(request), request.sampling
        if len(prompt) >= CONTEXT:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the prompt has {len(prompt)} tokens; expected less")
        if options.HasField("temperature") and options.temperature < 0:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "temperature is -1.0; expected in [0, 100]")
        yield pb.GenerateResponse(prompt=pb.PromptInfo(request_id=request.request_id, prompt_tokens=len(prompt)))
        limit = options.max_tokens if options.HasField("max_tokens") else CONTEXT - len(prompt)
        samples = options.n if options.HasField("n") else 1
        drawn = 0
        for sample in range(samples):
            text = reply(prompt, sample)
            for index, character in enumerate(text[:limit]):
                if self.fail_after is not None and sample == 0 and index == self.fail_after[0]:
                    _, code, message, retry = self.fail_after
                    await context.abort(code, message, () if retry is None else (("retry-after", f"{retry:g}"),))
                await asyncio.sleep(self.delay)
                detail = pb.TokenDetail(token=ord(character), position=len(prompt) + index)
                if options.HasField("logprobs"):
                    fill(detail, options.logprobs)
                delta = pb.Delta(sample=sample, text=character, tokens=[detail])
                drawn += 1
                self.sent[request.request_id] = drawn
                yield pb.GenerateResponse(delta=delta)
            done = pb.Completion(sample=sample, finish_reason="stop" if len(text) <= limit else "length")
            yield pb.GenerateResponse(completion=done)
        if options.HasField("prompt_logprobs"):
            yield pb.GenerateResponse(prompt=prompt_info(request, prompt, options.prompt_logprobs))
        seconds = 2.5 if request.HasField("speech") else 0.0
        usage = pb.Usage(
            audio_seconds=seconds, prompt_tokens=len(prompt), completion_tokens=drawn, cached_tokens=len(prompt) // 2
        )
        timings = pb.Timings(queue=0.5, prefill=0.25, transfer=0.125, first_token=0.75, total=1.5, kv_bytes=4096)
        yield pb.GenerateResponse(summary=pb.Summary(usage=usage, timings=timings))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text="".join(map(chr, request.ids)))

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Any) -> pb.Loads:
        one = pb.InstanceOccupancy(id="decode-0", roles=["decode"], running=2, waiting=3, free_pages=16, num_pages=64)
        return pb.Loads(instances=[one], queued=1, active=3)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.ModelInfo:
        return pb.ModelInfo(model=MODEL, architecture="Toy", vocab_size=50_000, max_model_len=CONTEXT)


def fill(detail: pb.TokenDetail, top: int) -> None:
    """Log-probabilities that say which token and which rank they belong to; a token is its own likeliest."""
    detail.text, detail.logprob = chr(detail.token), -detail.position / 8
    for rank in range(top):
        detail.top.add(token=detail.token + rank, logprob=-(detail.position + rank) / 8, text=chr(detail.token + rank))


def prompt_info(request: pb.GenerateRequest, prompt: str, top: int) -> pb.PromptInfo:
    info = pb.PromptInfo(request_id=request.request_id, prompt_tokens=len(prompt))
    for index, character in enumerate(prompt):
        detail = info.prompt_logprobs.add(token=ord(character), position=index)
        if index:
            fill(detail, top)
    return info


class World:
    """A fake gateway, and HTTP servers before it, on one loop in a thread of its own."""

    def __init__(self) -> None:
        self.gateway = FakeGateway()
        self.health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] - imported conditionally
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="world", daemon=True)

    def call(self, coroutine: Any) -> Any:
        """Run something on the world's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(100)

    def healthy(self, yes: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if yes else health_pb2.HealthCheckResponse.NOT_SERVING
        self.call(self.health.set("triptych.v1.Inference", status))

    @contextmanager
    def http(self, **changes: Any) -> Iterator[str]:
        """The URL of a server with these settings."""
        config = replace(HttpConfig(self.address, shutdown_timeout=0.5), **changes)
        server = self.call(self._start(config))
        try:
            yield server.url
        finally:
            self.call(server.stop())

    def __enter__(self) -> Self:
        self._thread.start()
        self.address = self.call(self._serve())
        self.healthy(True)
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._grpc.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> str:
        self._grpc = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServicer_to_server(self.gateway, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._grpc)
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        await self._grpc.start()
        return f"127.0.0.1:{port}"

    @staticmethod
    async def _start(config: HttpConfig) -> HttpServer:
        server = HttpServer(config)
        await server.start()
        return server

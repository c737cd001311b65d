"""The asyncio client. Belongs to the event loop on which it was made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Self, TypeVar, Unpack

import grpc

from triptych.proto.v1 import inference_pb2 as pb
from triptych.proto.v1 import inference_pb2_grpc
from triptych.runtime.client import transport
from triptych.runtime.client.media import MediaInput, Uploaded, read_medium, upload_messages, uploaded
from triptych.runtime.client.requests import (
    Message,
    Sampling,
    detokenize_request,
    generate_request,
    speech_request,
    tokenize_request,
)
from triptych.runtime.client.results import Chunk, Result
from triptych.runtime.core.errors import DeadlineError
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.ended import CallEnd
from triptych.runtime.wire.status import typed_error
from triptych.runtime.wire.tls import Tls, open_channel

T = TypeVar("T")


class AsyncStream(AsyncIterator[Chunk]):
    """Chunks of one generation as they come. `result` fills up meanwhile and is complete when the iteration ends.

    Closing the stream (or leaving its `async with` block) cancels the generation if it still runs. Iterating raises the typed error of a
    failed generation.
    """

    def __init__(self, call: Any):
        self._call = call
        self._responses: AsyncIterator[pb.GenerateResponse] = call.__aiter__()
        self.result = Result()

    async def __anext__(self) -> Chunk:
        while True:
            try:
                response = await self._responses.__anext__()
            except StopAsyncIteration:
                self.result.check_complete()
                raise
            except grpc.aio.AioRpcError as error:
                raise typed_error(error) from error
            chunk = self.result.feed(response)
            if chunk is not None:
                return chunk

    def close(self) -> None:
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """Talks to one server.

    Args:
        address: host:port.
        token: bearer token, if the server wants one.
        tls: None for plaintext.
    """

    def __init__(self, address: str, token: str | None = None, tls: Tls | None = None):
        self._address = address
        self._channel = open_channel(address, tls, transport.CHANNEL_OPTIONS)
        self._metadata = bearer_metadata(token)
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        token_ids: Sequence[int] | None = None,
        images: Sequence[MediaInput] | None = None,
        videos: Sequence[MediaInput] | None = None,
        media: Sequence[MediaInput] | None = None,
        add_generation_prompt: bool | None = None,
        model: str = "",
        request_id: str = "",
        timeout: float | None = None,
        priority: int = 0,
        cache_salt: str = "",
        traceparent: str = "",
        **sampling: Unpack[Sampling],
    ) -> AsyncStream:
        """Stream a generation from exactly one of `prompt`, `messages` and `token_ids`.

        Args:
            images, videos, media: what the model's placeholders in a prompt stand for, in this order (a prompt without any has them before its text).
                Each is a path, bytes, a data URI, an upload or a Pillow image. In a chat they are parts of messages.
            timeout: seconds.
            traceparent: W3C trace context that the server's spans shall belong to.
        """
        request = generate_request(
            prompt,
            messages=messages,
            token_ids=token_ids,
            images=images,
            videos=videos,
            media=media,
            add_generation_prompt=add_generation_prompt,
            model=model,
            request_id=request_id,
            timeout=timeout,
            priority=priority,
            cache_salt=cache_salt,
            sampling=sampling,
        )
        return self.stream(request, traceparent)

    def stream(self, request: pb.GenerateRequest, traceparent: str = "") -> AsyncStream:
        """Stream a generation from a message."""
        timeout = transport.call_timeout(request.timeout if request.HasField("timeout") else None)
        trace = (("traceparent", traceparent),) if traceparent else ()
        return AsyncStream(self._stub.Generate(request, timeout=timeout, metadata=(*self._metadata, *trace)))

    async def complete(self, prompt: str | None = None, **arguments: Any) -> Result:
        """Run a generation to its end; takes what `generate` takes."""
        async with self.generate(prompt, **arguments) as stream:
            async for _ in stream:
                pass
            return stream.result

    async def transcribe(
        self, sound: MediaInput, *, language: str | None = None, translate: bool = False, **arguments: Any
    ) -> Result:
        """Write down a sound with a model of speech; takes what the blocking client's `transcribe` takes."""
        known = ("model", "request_id", "timeout", "priority", "cache_salt")
        rest = {name: arguments.pop(name) for name in known if name in arguments}
        async with self.stream(speech_request(sound, language, translate, arguments, **rest)) as stream:
            async for _ in stream:
                pass
            return stream.result

    async def abort(self, request_id: str) -> None:
        """End a running request of any client. Raises NotFoundError if it does not run (any more)."""
        await self._unary(self._stub.Abort(pb.AbortRequest(request_id=request_id), metadata=self._metadata))

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool | None = None,
    ) -> list[int]:
        request = tokenize_request(text, messages, add_special_tokens, add_generation_prompt)
        response = await self._unary(self._stub.Tokenize(request, metadata=self._metadata))
        return list(response.ids)

    async def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        request = detokenize_request(ids, skip_special_tokens)
        response = await self._unary(self._stub.Detokenize(request, metadata=self._metadata))
        return response.text

    async def upload_media(self, medium: MediaInput, declared: str = "") -> Uploaded:
        """Upload a file once, to use what is returned in many requests. `declared`: its type, checked by the server."""
        call = self._stub.UploadMedia(upload_messages(read_medium(medium), declared), metadata=self._metadata)
        end = CallEnd(call)  # it may be refused while it is being sent
        try:
            return uploaded(await call)
        except grpc.aio.AioRpcError as error:
            raise typed_error(await end.error(error)) from error

    async def delete_media(self, upload: Uploaded) -> None:
        """Raises NotFoundError if it is not there (any more)."""
        request = pb.DeleteMediaRequest(handle=upload.handle)
        await self._unary(self._stub.DeleteMedia(request, metadata=self._metadata))

    async def model_info(self) -> pb.ModelInfo:
        return await self._unary(self._stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=self._metadata))

    async def server_info(self) -> pb.ServerInfo:
        return await self._unary(self._stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=self._metadata))

    async def loads(self) -> pb.Loads:
        return await self._unary(self._stub.GetLoads(pb.GetLoadsRequest(), metadata=self._metadata))

    async def ready(self) -> bool:
        """Whether the server can be reached and could place a request now."""
        check = self._channel.unary_unary(transport.HEALTH_METHOD)
        try:
            return (
                await check(transport.HEALTH_REQUEST, timeout=2.0, metadata=self._metadata) == transport.HEALTH_SERVING
            )
        except grpc.aio.AioRpcError as error:
            failure = typed_error(error)
            if failure.status in transport.FATAL:
                raise failure from error
            return False

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the server can place requests. Raises DeadlineError after `timeout` seconds."""
        until = asyncio.get_running_loop().time() + timeout
        while not await self.ready():
            if asyncio.get_running_loop().time() >= until:
                raise DeadlineError(f"{self._address} was not ready after {timeout:g} s")
            await asyncio.sleep(transport.HEALTH_INTERVAL)

    async def close(self) -> None:
        """Close the connection; running generations are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _unary(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise typed_error(error) from error

"""The blocking client. Thread-safe: one Client may serve many threads, one Stream belongs to one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Self, Unpack

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
from triptych.runtime.wire.status import typed_error
from triptych.runtime.wire.tls import Tls


class Stream(Iterator[Chunk]):
    """Chunks of one generation as they come. `result` fills up meanwhile and is complete when the iteration ends.

    Closing the stream (or leaving its `with` block) cancels the generation if it still runs. Iterating raises the typed error of a
    failed generation.
    """

    def __init__(self, call: Any):
        self._call = call
        self.result = Result()

    def __next__(self) -> Chunk:
        while True:
            try:
                response = next(self._call)
            except StopIteration:
                self.result.check_complete()
                raise
            except grpc.RpcError as error:
                raise typed_error(error) from error
            chunk = self.result.feed(response)
            if chunk is not None:
                return chunk

    def close(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """Talks to one server.

    Args:
        address: host:port.
        token: bearer token, if the server wants one.
        tls: None for plaintext.
    """

    def __init__(self, address: str, token: str | None = None, tls: Tls | None = None):
        self._address = address
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=transport.CHANNEL_OPTIONS)
        else:
            options = (*transport.CHANNEL_OPTIONS, *tls.channel_options())
            self._channel = grpc.secure_channel(address, tls.credentials(), options=options)
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
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Stream a generation from exactly one of `prompt`, `messages` and `token_ids`.

        Args:
            images, videos, media: what the model's placeholders in a prompt stand for, in this order (a prompt without any has them before its text).
                Each is a path, bytes, a data URI, an upload or a Pillow image. In a chat they are parts of messages.
            timeout: seconds.
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
        return self.stream(request)

    def stream(self, request: pb.GenerateRequest) -> Stream:
        """Stream a generation from a message."""
        timeout = transport.call_timeout(request.timeout if request.HasField("timeout") else None)
        return Stream(self._stub.Generate(request, timeout=timeout, metadata=self._metadata))

    def complete(self, prompt: str | None = None, **arguments: Any) -> Result:
        """Run a generation to its end; takes what `generate` takes."""
        with self.generate(prompt, **arguments) as stream:
            for _ in stream:
                pass
            return stream.result

    def transcribe(
        self,
        sound: MediaInput,
        *,
        language: str | None = None,
        translate: bool = False,
        model: str = "",
        request_id: str = "",
        timeout: float | None = None,
        priority: int = 0,
        cache_salt: str = "",
        **sampling: Unpack[Sampling],
    ) -> Result:
        """Write down a sound (a path, the bytes of a file, a data URI or an upload) with a model of speech. `stream(speech_request(...))` streams it.

        Args:
            language: what is spoken, such as "en"; multilingual models need it.
            translate: into English; multilingual models only.
            timeout: seconds.
        """
        request = speech_request(
            sound,
            language,
            translate,
            sampling,
            model=model,
            request_id=request_id,
            timeout=timeout,
            priority=priority,
            cache_salt=cache_salt,
        )
        with self.stream(request) as stream:
            for _ in stream:
                pass
            return stream.result

    def abort(self, request_id: str) -> None:
        """End a running request of any client. Raises NotFoundError if it does not run (any more)."""
        self._unary(self._stub.Abort, pb.AbortRequest(request_id=request_id))

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool | None = None,
    ) -> list[int]:
        request = tokenize_request(text, messages, add_special_tokens, add_generation_prompt)
        return list(self._unary(self._stub.Tokenize, request).ids)

    def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        request = detokenize_request(ids, skip_special_tokens)
        return self._unary(self._stub.Detokenize, request).text

    def upload_media(self, medium: MediaInput, declared: str = "") -> Uploaded:
        """Upload a file once, to use what is returned in many requests. `declared`: its type, checked by the server."""
        return uploaded(self._unary(self._stub.UploadMedia, upload_messages(read_medium(medium), declared)))

    def delete_media(self, upload: Uploaded) -> None:
        """Raises NotFoundError if it is not there (any more)."""
        self._unary(self._stub.DeleteMedia, pb.DeleteMediaRequest(handle=upload.handle))

    def model_info(self) -> pb.ModelInfo:
        return self._unary(self._stub.GetModelInfo, pb.GetModelInfoRequest())

    def server_info(self) -> pb.ServerInfo:
        return self._unary(self._stub.GetServerInfo, pb.GetServerInfoRequest())

    def loads(self) -> pb.Loads:
        return self._unary(self._stub.GetLoads, pb.GetLoadsRequest())

    def ready(self) -> bool:
        """Whether the server can be reached and could place a request now."""
        check = self._channel.unary_unary(transport.HEALTH_METHOD)
        try:
            return check(transport.HEALTH_REQUEST, timeout=2.0, metadata=self._metadata) == transport.HEALTH_SERVING
        except grpc.RpcError as error:
            failure = typed_error(error)
            if failure.status in transport.FATAL:
                raise failure from error
            return False

    def wait_ready(self, timeout: float) -> None:
        """Wait until the server can place requests. Raises DeadlineError after `timeout` seconds."""
        until = time.monotonic() + timeout
        while not self.ready():
            if time.monotonic() >= until:
                raise DeadlineError(f"{self._address} was not ready after {timeout:g} s")
            time.sleep(transport.HEALTH_INTERVAL)

    def close(self) -> None:
        """Close the connection; running generations are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unary(self, method: Any, request: Any) -> Any:
        try:
            return method(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise typed_error(error) from error

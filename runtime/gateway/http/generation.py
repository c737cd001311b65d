"""What both endpoints reduce a body to: prompts, sampling and the form of the answer; and the chunks of all its prompts as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import AsyncClient, AsyncStream, Chunk, Result
from triptych.runtime.client.requests import Message, Sampling, generate_request, speech_request


@dataclass(frozen=True)
class Sound:
    """A sound file that is to be written down: in its `language` (empty: unsaid), or in English."""

    data: bytes
    language: str = ""
    translate: bool = False


@dataclass(frozen=True)
class Prompt:
    """One prompt, in exactly one of four forms."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    sound: Sound | None = None

    @property
    def has_media(self) -> bool:
        """Whether it is a sound, or its messages may have media: those of text alone are strings by now."""
        return self.sound is not None or any(
            not isinstance(message.get("content"), str) for message in self.messages or ()
        )


@dataclass(frozen=True)
class Generation:
    """One HTTP request to generate.

    Attributes:
        id: what the answer carries, and, with a number behind it for each of several prompts, the gateway's request id.
        prompts: one for a chat; each gives `samples` choices, numbered through.
        fields: names that the body had, to tell which one an error of the gateway means.
        include_usage, continuous_usage: usage at the end of a stream, and in each of its chunks (the latter is vLLM's).
        traceparent: the caller's W3C trace context, for the gateway's spans.
    """

    id: str
    model: str
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    samples: int
    fields: frozenset[str]
    add_generation_prompt: bool | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    priority: int = 0
    cache_salt: str = ""
    traceparent: str = ""


@dataclass
class Totals:
    """Tokens of all prompts so far."""

    results: Sequence[Result] = field(default_factory=list)
    completion_tokens: int = 0

    def usage(self) -> dict[str, object]:
        """OpenAI's usage; the gateway's own count where a prompt's stream has ended, what was seen where it has not."""
        prompt = sum(r.usage.prompt_tokens if r.usage else r.prompt_tokens for r in self.results)
        cached = sum(r.usage.cached_tokens for r in self.results if r.usage)
        media = sum(r.usage.media_tokens for r in self.results if r.usage)
        completion = self.completion_tokens
        if self.results and all(r.complete for r in self.results):
            completion = sum(r.usage.completion_tokens for r in self.results if r.usage)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached} | ({"media_tokens": media} if media else {}),
        }


@asynccontextmanager
async def started(client: AsyncClient, generation: Generation, timeout: float) -> AsyncIterator[list[AsyncStream]]:
    """A stream for every prompt; all are cancelled when the context is left. `timeout`: seconds that each may take."""
    async with AsyncExitStack() as stack:
        streams = []
        for index, prompt in enumerate(generation.prompts):
            request_id = generation.id if len(generation.prompts) == 1 else f"{generation.id}-{index}"
            made = partial(_request, generation, prompt, request_id, timeout)
            # Media are decoded from base64 here, which takes long enough to be felt by others.
            request = await asyncio.to_thread(made) if prompt.has_media else made()
            streams.append(await stack.enter_async_context(client.stream(request, generation.traceparent)))
        yield streams


def _request(generation: Generation, prompt: Prompt, request_id: str, timeout: float) -> pb.GenerateRequest:
    """The message of one prompt. Raises InvalidRequestError."""
    rest: dict[str, Any] = {
        "model": generation.model,
        "request_id": request_id,
        "timeout": timeout,
        "priority": generation.priority,
        "cache_salt": generation.cache_salt,
    }
    if prompt.sound is not None:
        sound = prompt.sound
        return speech_request(sound.data, sound.language, sound.translate, generation.sampling, **rest)
    return generate_request(
        prompt.text,
        messages=prompt.messages,
        token_ids=prompt.token_ids,
        add_generation_prompt=generation.add_generation_prompt,
        sampling=generation.sampling,
        **rest,
    )


async def chunks(streams: Sequence[AsyncStream]) -> AsyncIterator[tuple[int, Chunk]]:
    """(index of the prompt, chunk) of all streams as they come. Raises the first failure; the others are the caller's to close."""
    if len(streams) == 1:
        async for chunk in streams[0]:
            yield 0, chunk
        return
    merged: asyncio.Queue[tuple[int, Chunk | Exception | None]] = asyncio.Queue(len(streams))

    async def forward(index: int, stream: AsyncStream) -> None:
        try:
            async for chunk in stream:
                await merged.put((index, chunk))
            await merged.put((index, None))
        except Exception as error:  # noqa: BLE001 - raised again below, in the caller's task
            await merged.put((index, error))

    tasks = [asyncio.create_task(forward(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(streams)
        while running:
            index, item = await merged.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

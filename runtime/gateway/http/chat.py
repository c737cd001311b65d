"""/v1/chat/completions: the body to a `Generation`, chunks to OpenAI's objects."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.models.text.messages import InvalidMessageError, part_messages, plain_messages
from triptych.runtime.client import Chunk, Result
from triptych.runtime.core.sampling import MAX_LOGPROBS
from triptych.runtime.gateway.http import logprobs, sampling
from triptych.runtime.gateway.http.errors import bad_field
from triptych.runtime.gateway.http.fields import ANYTHING, NOTHING, Fields, Inert, only, wrong
from triptych.runtime.gateway.http.generation import Generation, Prompt

INERT: dict[str, Inert] = sampling.INERT | {
    "tools": NOTHING,
    "functions": NOTHING,
    "tool_choice": only("none", "auto"),
    "function_call": only("none", "auto"),
    "parallel_tool_calls": ANYTHING,  # says something about tools only
    "modalities": only(["text"]),
    "audio": NOTHING,
    "prediction": ANYTHING,  # a hint for speed: the answer is the same
    "reasoning_effort": only("none"),
    "verbosity": NOTHING,
    "web_search_options": NOTHING,
    "echo": only(False),
    "continue_final_message": only(False),
    "add_special_tokens": only(False),
    "chat_template": NOTHING,
    "chat_template_kwargs": NOTHING,
    "documents": NOTHING,
    "mm_processor_kwargs": NOTHING,
    "media_io_kwargs": NOTHING,
    "include_reasoning": ANYTHING,  # there is none
}


MEDIA_PARTS = ("image_url", "input_audio", "video_url", "audio_url", "media")
"""OpenAI's, vLLM's two, and ours: `{"type": "media", "handle": ...}` for what was uploaded through gRPC. Never a path: it would be this server's."""


def parse(body: Mapping[str, Any], id: str) -> Generation:
    """A body of /v1/chat/completions. Raises HttpError 400 naming the field."""
    fields = Fields(body, INERT)
    messages = _messages(fields.take("messages"))
    wants_logprobs, top = fields.flag("logprobs") or False, fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if top and not wants_logprobs:
        raise bad_field("top_logprobs", "top_logprobs is set; expected it only where logprobs is true")
    prompt_top = fields.integer("prompt_logprobs", 0, MAX_LOGPROBS)
    stream, include_usage, continuous_usage = sampling.streaming(fields)
    if stream and prompt_top is not None:
        raise bad_field("prompt_logprobs", "prompt_logprobs is set; expected it only where stream is false")
    samples = fields.integer("n", 1, 128)
    options = sampling.shared_sampling(fields)
    options["max_tokens"] = _max_tokens(fields)
    options["n"] = samples
    options["logprobs"] = (top or 0) if wants_logprobs else None
    options["prompt_logprobs"] = prompt_top
    generation = Generation(
        id=id,
        model=fields.text("model") or "",
        prompts=(Prompt(messages=messages),),
        sampling=options,
        samples=samples or 1,
        fields=frozenset(body),
        add_generation_prompt=fields.flag("add_generation_prompt"),
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        priority=sampling.place_in_queue(fields),
        cache_salt=fields.text("cache_salt") or "",
    )
    fields.finish()
    return generation


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if value is None:
        raise bad_field("messages", "messages is not set; expected at least one message")
    if not isinstance(value, list):
        wrong("messages", value, "an array of messages")
    # What an earlier answer of ours looked like may be sent back as it was: fields of it that say nothing are dropped.
    said = [
        {k: v for k, v in message.items() if v is not None and v != []} if isinstance(message, dict) else message
        for message in value
    ]
    try:
        if not _has_media(said):
            return tuple(plain_messages(said))
        part_messages(said, MEDIA_PARTS)
        return tuple(said)  # what is in its media is the client's to read, and names the part that is wrong
    except InvalidMessageError as error:
        raise bad_field("messages", f"messages: {error}") from error


def _has_media(messages: list[Any]) -> bool:
    """Whether any part of any message is one that only a multimodal model takes."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return any(
        isinstance(part, dict) and part.get("type") in MEDIA_PARTS
        for content in contents
        if isinstance(content, list)
        for part in content
    )


def _max_tokens(fields: Fields) -> int | None:
    old, new = fields.integer("max_tokens", 1), fields.integer("max_completion_tokens", 1)
    if old is not None and new is not None and old != new:
        raise bad_field("max_tokens", f"max_tokens is {old} and max_completion_tokens is {new}; expected one of them")
    return new if new is not None else old


class ChatFormat:
    """OpenAI's objects of one chat."""

    def __init__(self, generation: Generation, model: str):
        self._generation = generation
        self._with_logprobs = generation.sampling.get("logprobs") is not None
        self._head = {"id": generation.id, "created": int(time.time()), "model": model}

    def ready(self, results: Sequence[Result]) -> bool:
        """Whether chunks can be sent; a chat's always can."""
        return True

    def opening(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        """The role of every choice, before its text."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(choice, delta) for choice in range(self._generation.samples)]

    def piece(self, prompt: int, chunk: Chunk) -> dict[str, Any]:
        if chunk.finish_reason is not None:
            return self._chunk(chunk.sample, {}, finish_reason=chunk.finish_reason)
        spelled = logprobs.chat_logprobs(chunk.tokens) if self._with_logprobs else None
        return self._chunk(chunk.sample, {"content": chunk.text}, spelled)

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk with usage and no choices."""
        return self._head_of("chat.completion.chunk") | {"choices": [], "usage": usage}

    def whole(self, results: Sequence[Result], usage: dict[str, Any]) -> dict[str, Any]:
        (result,) = results
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": sample.text, "refusal": None},
                "logprobs": logprobs.chat_logprobs(sample.tokens) if self._with_logprobs else None,
                "finish_reason": sample.finish_reason,
            }
            for index, sample in enumerate(result.samples)
        ]
        answer = self._head_of("chat.completion") | {"choices": choices, "usage": usage}
        if self._generation.sampling.get("prompt_logprobs") is not None:
            answer["prompt_logprobs"] = logprobs.prompt_logprobs(result.prompt_logprobs)
        return answer

    def _head_of(self, kind: str) -> dict[str, Any]:
        return {"id": self._head["id"], "object": kind, "created": self._head["created"], "model": self._head["model"]}

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        spelled: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        entry = {"index": choice, "delta": delta, "logprobs": spelled, "finish_reason": finish_reason}
        return self._head_of("chat.completion.chunk") | {"choices": [entry]}

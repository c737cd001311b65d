"""Keyword arguments to request messages: one mapping for both clients.

Names are those of `SamplingOptions`, which are vLLM's and OpenAI's. None means unset: the server then takes the model's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client.media import MediaInput, content_parts, media_message
from triptych.runtime.core.errors import InvalidRequestError

Message = Mapping[str, Any]
"""`role` and `content`: text, or a list of parts (see `client/media.py`)."""


class Sampling(TypedDict, total=False):
    """Sampling keywords of `generate` and `complete`; each is optional, None means unset."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None  # 0: greedy
    top_k: int | None
    top_p: float | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    n: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    prompt_logprobs: int | None
    include_stop: bool | None
    skip_special_tokens: bool | None


def generate_request(
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
    speech: pb.SpeechOptions | None = None,
    sampling: Mapping[str, object] | None = None,
) -> pb.GenerateRequest:
    """The message of a Generate call. Raises InvalidRequestError for what cannot be said in one; the server checks the rest."""
    given = [
        name
        for name, value in (("prompt", prompt), ("messages", messages), ("token_ids", token_ids))
        if value is not None
    ]
    if len(given) != (1 if speech is None else 0):
        raise InvalidRequestError(
            f"input is {' and '.join(given) or 'not given'}; expected exactly one of prompt, messages, token_ids"
        )
    if (images or videos or media) and messages is not None:
        raise InvalidRequestError(
            "images, videos and media are for prompt and token_ids; expected them in the content of messages"
        )
    try:
        request = pb.GenerateRequest(
            model=model, request_id=request_id, timeout=timeout, priority=priority, cache_salt=cache_salt
        )
        if prompt is not None:
            request.prompt = prompt
        elif messages is not None:
            request.chat.CopyFrom(chat(messages, add_generation_prompt))
        elif speech is not None:
            request.speech.CopyFrom(speech)
        else:
            request.token_ids.SetInParent()
            request.token_ids.ids.extend(_ids("token_ids", token_ids or ()))
        for name, declared, given_media in (
            ("images", "image", images),
            ("videos", "video", videos),
            ("media", "", media),
        ):
            for index, medium in enumerate(given_media or ()):
                request.media.append(media_message(medium, f"{name}[{index}]", declared))
        _fill_sampling(request.sampling, sampling or {})
    except (ValueError, TypeError) as error:  # protobuf names the field and the range
        raise InvalidRequestError(f"the request cannot be encoded: {error}") from error
    return request


def speech_request(
    sound: MediaInput,
    language: str | None,
    translate: bool,
    sampling: Mapping[str, object],
    *,
    model: str = "",
    request_id: str = "",
    timeout: float | None = None,
    priority: int = 0,
    cache_salt: str = "",
) -> pb.GenerateRequest:
    """The message of a call that writes down a sound. Raises InvalidRequestError as `generate_request` does."""
    return generate_request(
        media=[sound],
        speech=pb.SpeechOptions(language=language or "", translate=translate),
        model=model,
        request_id=request_id,
        timeout=timeout,
        priority=priority,
        cache_salt=cache_salt,
        sampling=sampling,
    )


def chat(messages: Sequence[Message], add_generation_prompt: bool | None = None) -> pb.Chat:
    """Messages of `{"role": ..., "content": ...}`; content is text or a list of parts."""
    conversation = pb.Chat()
    if add_generation_prompt is not None:
        conversation.add_generation_prompt = add_generation_prompt
    for index, message in enumerate(messages):
        if set(message) != {"role", "content"}:
            raise InvalidRequestError(f"messages[{index}] has the keys {sorted(message)}; expected role and content")
        content = message["content"]
        if content is None or isinstance(content, str):
            conversation.messages.add(role=message["role"], content=content)
        else:
            conversation.messages.add(role=message["role"], parts=content_parts(content, f"messages[{index}].content"))
    return conversation


def tokenize_request(
    text: str | None,
    messages: Sequence[Message] | None,
    add_special_tokens: bool | None,
    add_generation_prompt: bool | None,
) -> pb.TokenizeRequest:
    if (text is None) == (messages is None):
        raise InvalidRequestError("expected exactly one of text and messages")
    if messages is not None:
        return pb.TokenizeRequest(chat=chat(messages, add_generation_prompt))
    try:
        request = pb.TokenizeRequest(text=text)
    except ValueError as error:
        raise InvalidRequestError(f"text cannot be encoded: {error}") from error
    if add_special_tokens is not None:
        request.add_special_tokens = add_special_tokens
    return request


def detokenize_request(ids: Sequence[int], skip_special_tokens: bool) -> pb.DetokenizeRequest:
    return pb.DetokenizeRequest(ids=_ids("ids", ids), skip_special_tokens=skip_special_tokens)


def _ids(name: str, ids: Sequence[int]) -> Sequence[int]:
    """Raises InvalidRequestError naming the first id that no vocabulary has."""
    for index, token in enumerate(ids):
        if not isinstance(token, int) or not 0 <= token < 2**32:
            raise InvalidRequestError(f"{name}[{index}] is {token!r}; expected a token id")
    return ids


def _fill_sampling(options: pb.SamplingOptions, sampling: Mapping[str, object]) -> None:
    known = pb.SamplingOptions.DESCRIPTOR.fields_by_name
    for name, value in sampling.items():
        if name not in known:
            raise InvalidRequestError(f"{name} is no sampling field; expected one of {', '.join(sorted(known))}")
        if value is None:
            continue
        try:
            if isinstance(value, Mapping):
                getattr(options, name).update(value)
            elif isinstance(value, Sequence) and not isinstance(value, str):
                getattr(options, name).extend(value)
            elif name == "stop":
                options.stop.append(str(value))
            else:
                setattr(options, name, value)
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(f"{name} is {value!r}, which its field cannot hold: {error}") from error

"""Client input (text, chat, token ids, processed media) to prompt token ids. Runs on a thread of the text pool: long inputs take milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from triptych.models.text.chat import ChatTemplateError
from triptych.models.text.messages import InvalidMessageError
from triptych.models.text.tokenizer import Tokenizer
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.core.media import MediaItem
from triptych.runtime.gateway.media.expansion import expanded
from triptych.runtime.gateway.media.pieces import Medium
from triptych.runtime.gateway.model import ServedModel


def prompt_ids(
    request: pb.GenerateRequest, model: ServedModel, max_chars: int, media: Sequence[Medium] = ()
) -> tuple[tuple[int, ...], tuple[MediaItem, ...]]:
    """The prompt of a request, at least one token, and the items of its media. Raises InvalidRequestError naming the field that is wrong."""
    kind = request.WhichOneof("input")
    if kind is None:
        raise InvalidRequestError("input is not set; expected one of prompt, chat, token_ids")
    if kind == "token_ids":
        ids = tuple(request.token_ids.ids)
        check_ids("token_ids", ids, model.vocab_size)
    elif kind == "chat":
        ids = chat_ids(request.chat, model, max_chars, media)
    else:
        ids = text_ids("prompt", _placed(request.prompt, model, media), model, max_chars)
    if not ids:
        raise InvalidRequestError(f"{kind} is empty; expected at least one token")
    return (ids, ()) if model.media is None else expanded(ids, media, model.media, kind)


def text_ids(
    field: str, text: str, model: ServedModel, max_chars: int, *, add_special_tokens: bool = True
) -> tuple[int, ...]:
    """Tokens of plain text. `field` names it in errors."""
    tokenizer = tokenizer_of(model)
    _check_chars(field, len(text), max_chars)
    if not text:
        raise InvalidRequestError(f"{field} is empty; expected at least one character")
    return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def _placed(prompt: str, model: ServedModel, media: Sequence[Medium]) -> str:
    """A prompt that does not say where its media belong has them before its text."""
    if model.media is None or any(text in prompt for text in model.media.placeholders.values()):
        return prompt
    return "".join(f"{model.media.placeholders[medium.kind]}\n" for medium in media) + prompt


def chat_ids(chat: pb.Chat, model: ServedModel, max_chars: int, media: Sequence[Medium] = ()) -> tuple[int, ...]:
    """Tokens of a conversation through the model's chat template; each of its media is a placeholder."""
    tokenizer = tokenizer_of(model)
    if model.chat_template is None:
        raise InvalidRequestError(f"chat is set, but {model.name} has no chat template; send prompt or token_ids")
    answer = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
    if answer and chat.messages and chat.messages[-1].role == "assistant":
        raise InvalidRequestError(
            "chat.add_generation_prompt is true and the last message is the assistant's; expected a last message of another role, "
            "or add_generation_prompt=false"
        )
    chars = sum(len(message.content) + sum(len(part.text) for part in message.parts) for message in chat.messages)
    _check_chars("chat", chars, max_chars)
    kinds = iter(media)
    messages = [{"role": message.role, "content": _content(message, kinds, model)} for message in chat.messages]
    placeholders = {} if model.media is None else {kind.value: text for kind, text in model.media.placeholders.items()}
    try:
        text = model.chat_template.render(messages, add_generation_prompt=answer, placeholders=placeholders)
    except (InvalidMessageError, ChatTemplateError) as error:
        raise InvalidRequestError(f"chat: {error}") from error
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _content(message: pb.ChatMessage, media: Iterator[Medium], model: ServedModel) -> str | list[dict[str, Any]]:
    """What a chat template takes; `media` gives those of the conversation one after another."""
    if not message.parts:
        return message.content

    def medium() -> dict[str, str]:
        kind = next(media).kind
        return {"type": kind.value if model.media is None else model.media.part(kind)}

    return [
        {"type": "text", "text": part.text} if part.WhichOneof("kind") == "text" else medium() for part in message.parts
    ]


def check_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises InvalidRequestError for the first id that the model has no embedding for."""
    if ids and max(ids) >= vocab_size:
        index = next(i for i, token in enumerate(ids) if token >= vocab_size)
        raise InvalidRequestError(f"{field}[{index}] is {ids[index]}; expected a token id in [0, {vocab_size})")


def tokenizer_of(model: ServedModel) -> Tokenizer:
    """The model's tokenizer, or InvalidRequestError for a model without one."""
    if model.tokenizer is None:
        raise InvalidRequestError(f"{model.name} has no tokenizer; expected token_ids as input")
    return model.tokenizer


def _check_chars(field: str, chars: int, limit: int) -> None:
    if chars > limit:
        raise InvalidRequestError(f"{field} has {chars} characters; expected at most {limit}")

"""Which media a request brings, and by what name errors call each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InvalidRequestError, TriptychError, error_for


@dataclass(frozen=True)
class Asked:
    """One medium of a request, in the order of the prompt: `data`, or the `handle` of an upload. `declared`: its type as the client has it."""

    field: str
    data: bytes
    handle: str
    declared: str


def asked_media(request: pb.GenerateRequest) -> list[Asked]:
    """All media of a request. Raises InvalidRequestError naming the part that is malformed."""
    if request.WhichOneof("input") != "chat":
        return [_asked(f"media[{index}]", media) for index, media in enumerate(request.media)]
    if request.media:
        raise InvalidRequestError("media is set beside chat; expected media in the parts of the chat's messages")
    return list(_chat_media(request.chat))


def without_data(request: pb.GenerateRequest) -> pb.GenerateRequest:
    """The request without the bytes of its media, which are at the desk by then: they need not be held until it ends. The prompt's parts stay,
    for they say where media belong."""
    lighter = pb.GenerateRequest()
    for field, value in request.ListFields():
        if field.name == "media":
            for media in value:
                lighter.media.append(_named(media))
        elif field.name == "chat":
            _copy_chat(value, lighter.chat)
        elif field.type == field.TYPE_MESSAGE:
            getattr(lighter, field.name).CopyFrom(value)
        else:
            setattr(lighter, field.name, value)
    return lighter


def _copy_chat(chat: pb.Chat, lighter: pb.Chat) -> None:
    for field, value in chat.ListFields():
        if field.name != "messages":
            setattr(lighter, field.name, value)
    for message in chat.messages:
        copied = lighter.messages.add(role=message.role, content=message.content)
        for part in message.parts:
            if part.WhichOneof("kind") == "media":
                copied.parts.add(media=_named(part.media))
            else:
                copied.parts.add().CopyFrom(part)


def _named(media: pb.Media) -> pb.Media:
    return media if media.WhichOneof("source") != "data" else pb.Media(type=media.type)


def check_text_only(chat: pb.Chat) -> None:
    """Raises InvalidRequestError if a conversation has media, where only text can be read."""
    for media in _chat_media(chat):
        raise InvalidRequestError(f"{media.field}: media cannot be read here; expected text")


def at_field(field: str, error: TriptychError) -> TriptychError:
    """The same error, saying which part of the request it is about."""
    named = error_for(error.status, f"{field}: {error.message}")
    named.status = error.status  # classes are shared by statuses that no class has of its own
    named.retry_after = error.retry_after
    return named


def _chat_media(chat: pb.Chat) -> Iterator[Asked]:
    for index, message in enumerate(chat.messages):
        if message.parts and message.content:
            raise InvalidRequestError(f"chat.messages[{index}] has content and parts; expected one of them")
        for number, part in enumerate(message.parts):
            field = f"chat.messages[{index}].parts[{number}]"
            match part.WhichOneof("kind"):
                case None:
                    raise InvalidRequestError(f"{field}: it is empty; expected text or media")
                case "media":
                    yield _asked(field, part.media)


def _asked(field: str, media: pb.Media) -> Asked:
    source = media.WhichOneof("source")
    if source is None or not getattr(media, source):
        raise InvalidRequestError(f"{field}: {source or 'its source'} is not set; expected data or handle")
    return Asked(field, media.data, media.handle, media.type)

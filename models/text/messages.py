"""Chat messages as a chat template takes them: a role and a content.

Content may come as a list of parts (the OpenAI form). For a text model the parts are text, and are joined by newlines. A
multimodal model also takes parts that stand for media (`{"type": "image"}`, without the image): as they are where its
template takes parts, else as the placeholder that the model knows them by. Everything else is refused here, before a chat
template can drop it silently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["ROLES", "InvalidMessageError", "has_media", "part_messages", "plain_messages"]

ROLES = ("system", "developer", "user", "assistant", "tool")


class InvalidMessageError(ValueError):
    """A chat message is malformed; the message says which one and what was expected."""


def plain_messages(
    messages: Sequence[Mapping[str, Any]], placeholders: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Messages with exactly the keys `role` and `content` (str). `placeholders`: the text of each type of media part.

    Raises InvalidMessageError for no messages, an unknown role, an unknown field, a part that is neither text nor among
    `placeholders`, or empty user content.
    """
    known = placeholders or {}
    checked = _checked(messages, known)
    return [
        {"role": role, "content": "\n".join(part["text"] if part["type"] == "text" else known[part["type"]] for part in parts)}
        for role, parts in checked
    ]  # fmt: skip


def part_messages(messages: Sequence[Mapping[str, Any]], media: Collection[str]) -> list[dict[str, Any]]:
    """Messages whose content is a list of parts, `{"type": "text", "text": str}` or `{"type": <one of media>}`.

    Raises InvalidMessageError as `plain_messages` does.
    """
    return [{"role": role, "content": parts} for role, parts in _checked(messages, media)]


def has_media(message: Mapping[str, Any]) -> bool:
    """Whether a message that was checked has a part which is not text."""
    content = message["content"]
    return not isinstance(content, str) and any(part["type"] != "text" for part in content)


def _checked(messages: Sequence[Mapping[str, Any]], media: Collection[str]) -> list[tuple[str, list[dict[str, str]]]]:
    """Role and parts of each message."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidMessageError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise InvalidMessageError("the conversation has no messages; send at least one")
    return [_message(message, index, media) for index, message in enumerate(messages)]


def _message(message: Mapping[str, Any], index: int, media: Collection[str]) -> tuple[str, list[dict[str, str]]]:
    if not isinstance(message, Mapping):
        raise InvalidMessageError(
            f"message {index} must be an object with role and content, not {type(message).__name__}"
        )
    role = message.get("role")
    if role not in ROLES:
        raise InvalidMessageError(f"message {index} has role {role!r}; expected one of {', '.join(ROLES)}")
    unknown = sorted(str(key) for key in message.keys() - {"role", "content"})
    if unknown:
        raise InvalidMessageError(
            f"message {index} has unsupported fields {', '.join(unknown)}; only role and content are read"
        )
    parts = _parts(message.get("content"), index, media)
    if role == "user" and not any(part.get("text") or part["type"] != "text" for part in parts):
        raise InvalidMessageError(f"message {index} (user) has empty content")
    return role, parts


def _parts(content: Any, index: int, media: Collection[str]) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise InvalidMessageError(f"message {index} must have content: a string, or a non-empty list of text parts")
    return [_part(part, index, media) for part in content]


def _part(part: Any, index: int, media: Collection[str]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and isinstance(kind, str) and kind in media:
        return {"type": kind}
    text = part.get("text") if isinstance(part, Mapping) and kind == "text" else None
    if not isinstance(text, str):
        raise InvalidMessageError(
            f'message {index} has a part of type {kind!r}; a text model takes {{"type": "text", "text": str}}'
        )
    return {"type": "text", "text": text}

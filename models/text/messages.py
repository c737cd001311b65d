"""Chat messages as a text model takes them: a role and one string.

Content may come as a list of text parts (the OpenAI form); the parts are joined by newlines. Everything else is refused
here, before a chat template can drop it silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ROLES", "InvalidMessageError", "plain_messages"]

ROLES = ("system", "developer", "user", "assistant", "tool")


class InvalidMessageError(ValueError):
    """A chat message is malformed; the message says which one and what was expected."""


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages with exactly the keys `role` and `content` (str).

    Raises InvalidMessageError for no messages, an unknown role, an unknown field, a part that is not text, or empty
    user content.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidMessageError(f"messages must be a list of messages, not {type(messages).__name__}")
    if not messages:
        raise InvalidMessageError("the conversation has no messages; send at least one")
    return [_plain(message, index) for index, message in enumerate(messages)]


def _plain(message: Mapping[str, Any], index: int) -> dict[str, str]:
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
    text = _text(message.get("content"), index)
    if role == "user" and not text:
        raise InvalidMessageError(f"message {index} (user) has empty content")
    return {"role": role, "content": text}


def _text(content: Any, index: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise InvalidMessageError(f"message {index} must have content: a string, or a non-empty list of text parts")
    return "\n".join(_part(part, index) for part in content)


def _part(part: Any, index: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) and kind == "text" else None
    if not isinstance(text, str):
        raise InvalidMessageError(
            f'message {index} has a part of type {kind!r}; a text model takes {{"type": "text", "text": str}}'
        )
    return text

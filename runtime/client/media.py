"""Images, sounds and videos that applications give to the client, to messages.

A medium is a path, the bytes of a file, a data URI, what `upload_media` returned, or a Pillow image. Parts of chat messages may also have OpenAI's
form (`image_url` with a data URI, `input_audio`). Remote URLs are not fetched.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InvalidRequestError, TriptychError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import Kind
from triptych.runtime.media.source import MediaInput as Source
from triptych.runtime.media.source import from_data_uri, from_part

PIECE = 256 * 2**10  # bytes of an upload's messages
UNBOUNDED = MediaLimits(item_bytes=2**62, request_bytes=2**62)  # the server decides what is too much


@dataclass(frozen=True)
class Uploaded:
    """What the server keeps for this client, to be used in requests. `expires_in`: seconds, unless it is used meanwhile."""

    handle: str
    type: str = ""
    size: int = 0
    expires_in: float = 0.0


MediaInput = str | os.PathLike[str] | bytes | Uploaded | Any
"""A path or data URI, a path, a file's bytes, an upload, or a Pillow image."""


def media_message(medium: MediaInput, field: str, declared: str = "") -> pb.Media:
    """One medium as a message. `declared`: its type as the caller has it. Raises InvalidRequestError naming the field."""
    if isinstance(medium, Uploaded):
        return pb.Media(handle=medium.handle, type=declared)
    if isinstance(medium, str) and medium.startswith("data:"):
        kind = Kind(declared) if declared else None
        return _named(field, lambda: from_data_uri(medium, UNBOUNDED, kind))
    return pb.Media(data=read_medium(medium, field), type=declared)


def read_medium(medium: MediaInput, field: str = "media") -> bytes:
    """The bytes of a path, of bytes, or of a Pillow image (as PNG, which loses nothing)."""
    if isinstance(medium, bytes | bytearray | memoryview):
        return bytes(medium)
    if isinstance(medium, str | os.PathLike):
        if isinstance(medium, str) and medium.startswith(("http://", "https://")):
            raise InvalidRequestError(f"{field}: URLs are not fetched; expected a path, bytes, or a data URI")
        try:
            return Path(medium).read_bytes()
        except OSError as error:
            raise InvalidRequestError(f"{field}: {medium} cannot be read: {error.strerror or error}") from error
    save = getattr(medium, "save", None)
    if callable(save) and hasattr(medium, "mode"):
        buffer = io.BytesIO()
        save(buffer, "PNG")
        return buffer.getvalue()
    raise InvalidRequestError(
        f"{field} is {type(medium).__name__}; expected a path, bytes, a data URI, an upload or a Pillow image"
    )


def content_parts(content: Any, field: str) -> Iterator[pb.ContentPart]:
    """The parts of a message's content. Raises InvalidRequestError naming the part that is wrong."""
    if isinstance(content, Mapping | bytes) or not hasattr(content, "__iter__"):
        raise InvalidRequestError(f"{field} is {type(content).__name__}; expected text or an array of parts")
    parts = list(content)
    if not parts:
        raise InvalidRequestError(f"{field} is empty; expected text or at least one part")
    for index, part in enumerate(parts):
        yield _part(part, f"{field}[{index}]")


def upload_messages(data: bytes, declared: str) -> Iterator[pb.UploadMediaRequest]:
    """An upload as messages."""
    yield pb.UploadMediaRequest(header=pb.MediaUpload(type=declared, size=len(data)))
    for at in range(0, len(data), PIECE):
        yield pb.UploadMediaRequest(data=data[at : at + PIECE])


def uploaded(response: pb.UploadMediaResponse) -> Uploaded:
    return Uploaded(response.handle, response.type, response.size, response.expires_in)


def _part(part: Any, field: str) -> pb.ContentPart:
    if not isinstance(part, Mapping):
        raise InvalidRequestError(f"{field} is {type(part).__name__}; expected an object with a type")
    kind = part.get("type")
    match kind:
        case "text":
            text = part.get("text")
            if not isinstance(text, str):
                _wrong(f"{field}.text", text, "a string")
            return pb.ContentPart(text=text)
        case "image_url" | "video_url" | "audio_url" | "input_audio":
            return pb.ContentPart(media=_named(field, lambda: from_part(part, UNBOUNDED)))
        case "image" | "audio" | "video":
            if part.get(kind) is None:
                _wrong(f"{field}.{kind}", None, "a path, bytes, a data URI, an upload or a Pillow image")
            return pb.ContentPart(media=media_message(part[kind], f"{field}.{kind}", kind))
        case "media":  # by the handle of an upload
            handle = part.get("handle")
            if not isinstance(handle, str) or not handle:
                _wrong(f"{field}.handle", handle, "the handle of an upload")
            return pb.ContentPart(media=pb.Media(handle=handle))
    raise InvalidRequestError(
        f"{field} has the type {kind!r}; expected one of text, image_url, input_audio, image, audio, video, media"
    )


def _named(field: str, read: Callable[[], Source]) -> pb.Media:
    """What a part or data URI holds; errors name the field."""
    try:
        source = read()
    except TriptychError as error:
        raise InvalidRequestError(f"{field}: {error.message}") from error
    return pb.Media(data=source.data, type=source.type.value)


def _wrong(field: str, value: Any, expected: str) -> NoReturn:
    found = "not set" if value is None else f"a {type(value).__name__}"
    raise InvalidRequestError(f"{field} is {found}; expected {expected}")

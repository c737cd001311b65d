"""Images, sounds and videos that applications give to the client, to messages.

A medium is a path, the bytes of a file, a data URI, what `upload_media` returned, or a Pillow image. Parts of chat messages may also have OpenAI's
form (`image_url` with a data URI, `input_audio`). Remote URLs are not fetched.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InvalidRequestError

PIECE = 256 * 2**10  # bytes of an upload's messages
KINDS = ("image", "audio", "video")


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
        kind, data = from_data_uri(medium, field)
        return pb.Media(data=data, type=kind or declared)
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
    if hasattr(medium, "save") and hasattr(medium, "mode"):
        buffer = io.BytesIO()
        medium.save(buffer, "PNG")
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


def from_data_uri(uri: str, field: str) -> tuple[str, bytes]:
    """Type and bytes of `data:image/png;base64,...`. Raises InvalidRequestError."""
    head, comma, body = uri.removeprefix("data:").partition(",")
    if not comma:
        raise InvalidRequestError(f"{field}: the data URI has no comma; expected data:image/png;base64,...")
    kind, *parameters = head.split(";")
    if "base64" in parameters:
        return kind, from_base64(body, field)
    return kind, unquote_to_bytes(body)


def from_base64(text: str, field: str) -> bytes:
    """Raises InvalidRequestError for anything that base64 does not have, white space included."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{field}: it is not valid base64: {error}") from None


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
        case "image_url" | "video_url" | "audio_url":
            return pb.ContentPart(media=_from_url(part.get(kind), f"{field}.{kind}", kind.removesuffix("_url")))
        case "input_audio":
            return pb.ContentPart(media=_from_audio(part.get(kind), f"{field}.{kind}"))
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


def _from_url(value: Any, field: str, kind: str) -> pb.Media:
    """OpenAI's `{"url": ..., "detail": ...}`; `detail` asks for a size, which the model decides here."""
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str):
        _wrong(field, url, "an object with a url")
    if not url.startswith("data:"):
        scheme = url.partition(":")[0][:20]
        raise InvalidRequestError(
            f"{field}: the URL is {scheme}:..., which is not fetched; expected a data URI such as data:image/png;base64,..."
        )
    declared, data = from_data_uri(url, field)
    return pb.Media(data=data, type=declared or kind)


def _from_audio(value: Any, field: str) -> pb.Media:
    data = value.get("data") if isinstance(value, Mapping) else None
    form = value.get("format") if isinstance(value, Mapping) else None
    if not isinstance(data, str) or not isinstance(form, str) or not form.isalnum():
        _wrong(field, value, 'an object with data (base64) and format, such as "wav"')
    return pb.Media(data=from_base64(data, f"{field}.data"), type=f"audio/{form}")


def _wrong(field: str, value: Any, expected: str) -> NoReturn:
    found = "not set" if value is None else f"a {type(value).__name__}"
    raise InvalidRequestError(f"{field} is {found}; expected {expected}")

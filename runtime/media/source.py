"""Where media come from: bytes, data URIs, and the parts of OpenAI's messages, each to a `MediaInput` whose type is known from its bytes.

Remote URLs are refused unless their host is in an allow-list. Fetching from allowed hosts is not built: such a URL is UNIMPLEMENTED, and `check_remote` is the place
where its host is decided.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from triptych.runtime.media.errors import (
    CorruptMediaError,
    MediaError,
    MediaKindError,
    MediaLimitError,
    RemoteFetchError,
    RemoteMediaError,
)
from triptych.runtime.media.limits import MediaLimits, check_item
from triptych.runtime.media.sniff import Kind, MediaType, check_declared, sniff

NO_HOSTS: frozenset[str] = frozenset()
URL_PARTS = {"image_url": Kind.IMAGE, "video_url": Kind.VIDEO, "audio_url": Kind.AUDIO}
"""Parts that hold a URL. `image_url` is OpenAI's; the others are what other servers add in its likeness."""

DETAILS = (None, "auto", "low", "high", "original")
SOUND_FORMATS = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "opus": "audio/ogg"}
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
_DATA_HEAD = re.compile(
    rf"data:(?P<type>{_TOKEN}/{_TOKEN})?(?P<parameters>(?:;{_TOKEN}=[^;,\"]*)*)(?P<base64>;base64)?,", re.IGNORECASE
)
_SHOWN = 80  # characters of a client's string that an error repeats


@dataclass(frozen=True)
class MediaInput:
    """One item, as it was sent.

    Attributes:
        type: what its bytes are.
        data: the file.
        declared: what the client said that it is; agrees with `type`. None: nothing.
    """

    type: MediaType
    data: bytes = field(repr=False)
    declared: str | None = None

    @property
    def kind(self) -> Kind:
        return self.type.kind


def from_bytes(data: bytes, limits: MediaLimits, declared: str | None = None, kind: Kind | None = None) -> MediaInput:
    """An item of a file's bytes.

    Args:
        declared: the client's MIME type, if it gave one.
        kind: what the item must be; None: anything.

    Raises MediaLimitError (too large), CorruptMediaError (empty), MediaKindError (not accepted, not as declared, not of that kind).
    """
    check_item(len(data), limits)
    type = sniff(data)
    check_declared(declared, type)
    if kind is not None and type.kind is not kind:
        raise MediaKindError(f"the item is {type.value}; expected {kind.value} here")
    return MediaInput(type, bytes(data), declared)


def from_data_uri(uri: str, limits: MediaLimits, kind: Kind | None = None) -> MediaInput:
    """An item of `data:TYPE;base64,…` (RFC 2397); the type may be missing. Raises as `from_bytes`, and MediaError for another form."""
    head = _DATA_HEAD.match(uri)
    if head is None:
        raise MediaError(f"{uri[:_SHOWN]!r} is no data URI; expected data:TYPE;base64,DATA")
    if head["base64"] is None:
        raise MediaError("the data URI is not base64; expected data:TYPE;base64,DATA")
    return from_bytes(from_base64(uri[head.end() :], limits), limits, head["type"], kind)


def from_base64(text: str, limits: MediaLimits) -> bytes:
    """Strict base64 (RFC 4648, section 4): padding as it must be, no white space, nothing after it. Its size is looked at first."""
    size = len(text) // 4 * 3 - text[-2:].count("=")
    if size > limits.item_bytes:
        raise MediaLimitError(f"the item has {size} bytes; expected at most {limits.item_bytes}")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error is one; so is what is not ASCII
        raise CorruptMediaError(f"the item is not valid base64: {error}") from None


def from_part(part: Mapping[str, Any], limits: MediaLimits, hosts: AbstractSet[str] = NO_HOSTS) -> MediaInput:
    """An item of a part of a message: {"type": "image_url", "image_url": {"url": …, "detail": …}} or
    {"type": "input_audio", "input_audio": {"data": base64, "format": "wav" | "mp3"}}, as in OpenAI's API.

    Args:
        hosts: host names from which remote URLs would be fetched.

    Raises MediaError for a part of another form; RemoteMediaError, RemoteFetchError for remote URLs; and as `from_data_uri`.
    """
    name = part.get("type")
    if name == "input_audio":
        return _input_audio(_inner(part, name, {"data", "format"}), limits)
    if not isinstance(name, str) or name not in URL_PARTS:
        raise MediaError(
            f"a part of type {str(name)[:_SHOWN]!r} is no media; expected {', '.join(URL_PARTS)} or input_audio"
        )
    inner = _inner(part, name, {"url", "detail"} if name == "image_url" else {"url"})
    if inner.get("detail") not in DETAILS:
        raise MediaError(f"{name}.detail is {str(inner['detail'])[:_SHOWN]!r}; expected auto, low, high or original")
    return from_url(inner.get("url"), limits, URL_PARTS[name], hosts)


def from_url(url: Any, limits: MediaLimits, kind: Kind | None = None, hosts: AbstractSet[str] = NO_HOSTS) -> MediaInput:
    """An item of a data URI. A remote URL is refused: RemoteMediaError if its host is not allowed, else RemoteFetchError."""
    if not isinstance(url, str):
        raise MediaError(f"a media URL is {type(url).__name__}; expected a string")
    if url[:5].lower() == "data:":
        return from_data_uri(url, limits, kind)
    host = check_remote(url, hosts)
    raise RemoteFetchError(
        f"media of {host} are allowed, but fetching is not built; send them as a data URI or upload them"
    )


def check_remote(url: str, hosts: AbstractSet[str]) -> str:
    """The host of an http(s) URL that may be fetched, in lower case. Raises RemoteMediaError for every other URL."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        _ = parts.port  # raises for one that is no number
    except ValueError:
        raise RemoteMediaError(f"{url[:_SHOWN]!r} is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise RemoteMediaError(f"{url[:_SHOWN]!r} is no source of media; expected a data URI")
    if parts.username is not None or parts.password is not None:
        raise RemoteMediaError("a media URL with a user name is refused; expected a data URI")
    if any(ch <= " " or ch == "\\" for ch in url):  # clients of HTTP disagree about where the host ends
        raise RemoteMediaError(f"{url[:_SHOWN]!r} is no URL: it has white space, control characters or backslashes")
    if host not in {name.rstrip(".").lower() for name in hosts}:
        raise RemoteMediaError(f"media of {host[:_SHOWN]!r} are not fetched; send them as a data URI or upload them")
    return host


def _inner(part: Mapping[str, Any], name: str, known: set[str]) -> Mapping[str, Any]:
    """The object inside a part, with known fields only."""
    inner = part.get(name)
    if isinstance(inner, str) and name != "input_audio":
        inner = {"url": inner}  # several clients send the URL itself
    if not isinstance(inner, Mapping):
        raise MediaError(f"{name} is missing or no object; expected an object with {', '.join(sorted(known))}")
    unknown = inner.keys() - known
    if unknown:
        raise MediaError(f"{name} has unknown fields {sorted(str(key)[:_SHOWN] for key in unknown)[:8]}")
    return inner


def _input_audio(inner: Mapping[str, Any], limits: MediaLimits) -> MediaInput:
    data, form = inner.get("data"), inner.get("format")
    if not isinstance(data, str):
        raise MediaError("input_audio.data is missing or no string; expected base64")
    if not isinstance(form, str) or form.lower() not in SOUND_FORMATS:
        raise MediaError(f"input_audio.format is {str(form)[:_SHOWN]!r}; expected one of {', '.join(SOUND_FORMATS)}")
    return from_bytes(from_base64(data, limits), limits, SOUND_FORMATS[form.lower()], Kind.AUDIO)

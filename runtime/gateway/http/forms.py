"""Bodies of multipart/form-data (RFC 7578): the fields of a form, files among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message

from starlette.types import Receive, Scope

from triptych.runtime.gateway.http.errors import HttpError, bad_field
from triptych.runtime.gateway.http.limits import Room
from triptych.runtime.gateway.http.wire import header, read_bytes

FORM_TYPE = "multipart/form-data"
MAX_FIELDS = 64  # no request has as many; a body of nothing but small parts must not take long


@dataclass(frozen=True)
class File:
    """An uploaded file. `name` is what its sender calls it, empty where it says nothing."""

    name: str
    data: bytes


Form = Mapping[str, str | File]
"""Fields by name, each once; a name that ends in [] may come several times, and is refused then if it is used."""


async def read_form(scope: Scope, receive: Receive, limit: int, timeout: float, room: Room) -> Form:
    """The whole form, counted in `room`. Raises HttpError 400, 413, 415, 429 or 408, or ClientGoneError."""
    given = next(iter(header(scope, b"content-type")), b"").decode("latin-1")
    kind = Message()
    kind["content-type"] = given
    boundary = kind.get_boundary()
    if kind.get_content_type() != FORM_TYPE or not boundary:
        raise HttpError(415, f"the content type is {given[:100]!r}; expected {FORM_TYPE} with a boundary", close=True)
    body = await read_bytes(scope, receive, limit, timeout, room)
    return parse_form(body, boundary)


def parse_form(body: bytes, boundary: str) -> Form:
    """The fields of a body. Raises HttpError 400 for what is no form."""
    fields: dict[str, str | File] = {}
    for head, data in _parts(body, boundary.encode("latin-1", errors="replace")):
        name, value = _field(head, data)
        if name in fields:
            raise bad_field(name, f"{name[:100]!r} comes twice; expected it once")
        fields[name] = value
    return fields


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(headers, content) of each part. A delimiter is a line of its own; what comes before the first and after the last is no part."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, MAX_FIELDS + 2)
    if len(pieces) < 2 or len(pieces) > MAX_FIELDS + 2 or not pieces[-1].startswith(b"--"):
        raise HttpError(400, f"the body is no {FORM_TYPE} of at most {MAX_FIELDS} fields that ends with its boundary")
    for piece in pieces[1:-1]:
        padding, found, rest = piece.partition(b"\r\n")
        head, blank, data = (b"\r\n" + rest).partition(b"\r\n\r\n")
        if padding.strip() or not found or not blank:
            raise HttpError(400, "a part of the form has no headers")
        yield head.lstrip(b"\r\n"), data


def _field(head: bytes, data: bytes) -> tuple[str, str | File]:
    headers = message_from_bytes(head)
    name = headers.get_param("name", header="content-disposition")
    if headers.get_content_disposition() != "form-data" or not isinstance(name, str) or not name:
        raise HttpError(400, "a part of the form has no name")
    filename = headers.get_filename()
    if filename is not None:
        return name, File(filename, data)
    try:
        return name, data.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_field(name, f"{name[:100]!r} is no UTF-8 text") from None

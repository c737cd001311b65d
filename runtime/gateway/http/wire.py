"""ASGI by hand, where it must be exact: bodies with a bound, JSON answers, server-sent events, and the moment that a client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from triptych.runtime.gateway.http.errors import CLIENT_CLOSED_REQUEST, HttpError
from triptych.runtime.gateway.http.limits import Room

T = TypeVar("T")

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
EVENTS_TYPE = "text/event-stream; charset=utf-8"


class ClientGoneError(HttpError):
    """The client closed its connection; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED_REQUEST, "the client closed the connection")


def header(scope: Scope, name: bytes) -> list[bytes]:
    """All values of a header."""
    return [value for key, value in scope["headers"] if key == name]


async def read_body(scope: Scope, receive: Receive, limit: int, timeout: float, room: Room) -> bytes:
    """The whole body, which must be JSON, counted in `room`. Raises HttpError 413, 415, 429 or 408, or ClientGoneError."""
    kind = next(iter(header(scope, b"content-type")), b"").split(b";")[0].strip().lower()
    if kind and kind != JSON_TYPE.encode() and not kind.endswith(b"+json"):
        raise HttpError(415, f"the content type is {kind.decode('latin-1')}; expected {JSON_TYPE}", close=True)
    return await read_bytes(scope, receive, limit, timeout, room)


async def read_bytes(scope: Scope, receive: Receive, limit: int, timeout: float, room: Room) -> bytes:
    """The whole body, whatever its type, counted in `room`. Raises HttpError 413, 429 or 408, or ClientGoneError."""
    too_large = HttpError(413, f"the body is larger than {limit} bytes", close=True)
    declared = next(iter(header(scope, b"content-length")), b"0")
    if declared.isdigit():
        if int(declared) > limit:
            raise too_large
        room.expect(int(declared))
    parts, size = [], 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise too_large
                room.take(len(parts[-1]))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise HttpError(408, f"the body did not arrive within {timeout:g} s", close=True) from None


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")


async def send_body(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """A whole answer."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
    await send_body(send, status, encoded(value), {"content-type": JSON_TYPE} | dict(headers or {}))


class Events:
    """A stream of server-sent events in OpenAI's form: `data: <json>`, at last `data: [DONE]`. Headers go out with the first one."""

    def __init__(self, send: Send):
        self._send = send
        self.started = False

    async def data(self, value: Any) -> None:
        await self._line(encoded(value), more=True)

    async def done(self) -> None:
        """The end of a stream that ended well."""
        await self._line(b"[DONE]", more=False)

    async def failed(self, value: Any) -> None:
        """The end of a stream that did not: the error as its last event, and no [DONE]."""
        await self._line(encoded(value), more=False)

    async def _line(self, payload: bytes, *, more: bool) -> None:
        if not self.started:
            self.started = True
            headers = [
                (b"content-type", EVENTS_TYPE.encode()),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"data: " + payload + b"\n\n", "more_body": more})


async def attended(receive: Receive, stopping: asyncio.Future[HttpError], work: Coroutine[Any, Any, T]) -> T:
    """Run `work` while its client is there. Raises ClientGoneError when it goes, or what `stopping` holds once that is set; the work is
    cancelled first, and has ended by then. The body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((task, gone, stopping), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError() if gone.done() else stopping.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""/metrics, /live and /ready on a port of their own, on the process's event loop: a loop that hangs does not say that it lives.

Deliberately small: GET and HEAD, one answer a connection, a bound on everything that a client sends. It carries no secrets and asks for no token; bind it
to an address that only the operator reaches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError, TriptychError
from triptych.runtime.metrics.registry import CONTENT_TYPE, Metrics

log = logging.getLogger(__name__)

MAX_HEAD = 16 * 2**10  # bytes of a request's head
TIMEOUT = 5.0  # seconds for a request to arrive, and for its answer to leave
TEXT = "text/plain; charset=utf-8"
PHRASES = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


async def nothing() -> None:
    """For processes whose metrics are always up to date."""


def always() -> str | None:
    """For processes that are ready once they listen."""
    return None


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    kind: str = TEXT


class MetricsServer:
    """Started by `start`, ended by `stop`.

    Args:
        refresh: awaited before each scrape, for values that must be asked for. Where it fails, what is known is shown.
        ready: why the process cannot do its work now; None if it can.
    """

    def __init__(
        self,
        metrics: Metrics,
        host: str,
        port: int,
        *,
        refresh: Callable[[], Awaitable[None]] = nothing,
        ready: Callable[[], str | None] = always,
    ):
        self._metrics = metrics
        self._host = host
        self._wanted = port
        self._refresh = refresh
        self._ready = ready
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Raises ConfigError if the address is taken."""
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._wanted, limit=MAX_HEAD)
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {self._host}:{self._wanted}: {error.strerror}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
            method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
            answer = await self._answer(method, rest.split(" ", 1)[0].split("?", 1)[0])
            lines = (
                f"HTTP/1.1 {answer.status} {PHRASES[answer.status]}",
                f"content-type: {answer.kind}",
                f"content-length: {len(answer.body)}",
                "connection: close",
            )
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else answer.body))
            async with asyncio.timeout(TIMEOUT):
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a scrape was given up: %r", error)
        finally:
            writer.close()

    async def _answer(self, method: str, path: str) -> Answer:
        if method not in ("GET", "HEAD"):
            return Answer(405, b"expected GET\n")
        match path:
            case "/metrics":
                return await self._scrape()
            case "/live" | "/livez" | "/health" | "/healthz":
                return Answer(200, b"ok\n")
            case "/ready" | "/readyz":
                reason = self._ready()
                return Answer(200, b"ok\n") if reason is None else Answer(503, f"{reason}\n".encode())
            case _:
                return Answer(404, b"expected /metrics, /live or /ready\n")

    async def _scrape(self) -> Answer:
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._refresh()
        except (TriptychError, TimeoutError) as error:
            log.warning("metrics may be old: %s", error)
        return Answer(200, self._metrics.text(), CONTENT_TYPE)

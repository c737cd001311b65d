"""What every request passes: an id, authorisation, the client's rate, a metric, and errors in OpenAI's form.

Paths under GUARDED need a key and count against their client's rate; probes, metrics and the version are open.
"""

from __future__ import annotations

import logging
import secrets

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.gateway.http.errors import CLIENT_CLOSED_REQUEST, HttpError, from_runtime
from triptych.runtime.gateway.http.limits import Keys
from triptych.runtime.gateway.http.wire import ClientGoneError, header, send_json
from triptych.runtime.metrics.http import HttpMetrics
from triptych.runtime.wire.logs import request_id as logged_id
from triptych.runtime.wire.rate import RateLimiter

logger = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"
MAX_REQUEST_ID = 128
GUARDED = "/v1/"
QUIET = frozenset({"/health", "/healthz", "/live", "/livez", "/ready", "/readyz", "/metrics"})
"""Routes that are asked every few seconds: what goes well there is no news."""


class Door:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, keys: Keys, limiter: RateLimiter | None, metrics: HttpMetrics, clock: Clock):
        self._app = app
        self._keys = keys
        self._limiter = limiter
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived, answer = self._clock.now(), _Answer(send, _request_id(scope))
        scope["state"] = {"request_id": answer.id}
        token = logged_id.set(answer.id)
        self._metrics.in_flight.inc()
        try:
            await self._enter(scope, receive, answer)
        finally:
            self._metrics.in_flight.dec()
            seconds = self._clock.now() - arrived
            route = scope["state"].get("route", "other")
            status = answer.status or CLIENT_CLOSED_REQUEST
            self._metrics.answered(route, scope["method"], status, seconds)
            level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
            about = scope["state"].get("generation", "")  # how the gateway's log calls it
            logger.log(level, "%s %s %d %.3f s %s", scope["method"], route, status, seconds, about)
            logged_id.reset(token)

    async def _enter(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            if scope["path"].startswith(GUARDED):
                key = self._keys.check(header(scope, b"authorization"))
                if self._limiter is not None:
                    self._limiter.admit(key or _address(scope), self._clock.now())
            await self._app(scope, receive, answer)
            return
        except ClientGoneError:
            answer.status = CLIENT_CLOSED_REQUEST
            return
        except HttpError as error:
            failure = error
        except TriptychError as error:
            failure = from_runtime(error)
        except HTTPException as error:  # the router's
            failure = HttpError(error.status_code, f"{scope['method']} {scope['path'][:200]}: {error.detail}")
        except Exception as error:
            logger.exception("%s failed", answer.id)
            failure = HttpError(
                500, f"internal error ({type(error).__name__}); the server's log has it under {answer.id}"
            )
        if answer.status is not None:
            return  # what was under way cannot be ended in order: the server cuts the connection
        await send_json(answer, failure.status, failure.body(), failure.headers())


class _Answer:
    """`send` that adds the request's id and remembers the status."""

    def __init__(self, send: Send, id: str):
        self._send = send
        self.id = id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (REQUEST_ID, self.id.encode())]
        await self._send(message)


def _request_id(scope: Scope) -> str:
    """The client's, where it is fit to be logged and sent back; otherwise a new one."""
    given = next(iter(header(scope, REQUEST_ID)), b"").decode("latin-1")
    if given and len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable():
        return given
    return f"req-{secrets.token_hex(12)}"


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "unknown"

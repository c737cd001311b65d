"""The routes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from triptych import __version__
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import AsyncClient
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.gateway.http import chat, completions, transcriptions
from triptych.runtime.gateway.http.answer import Format, Service, answer
from triptych.runtime.gateway.http.chat import ChatFormat
from triptych.runtime.gateway.http.completions import CompletionFormat
from triptych.runtime.gateway.http.door import Door
from triptych.runtime.gateway.http.errors import HttpError, from_runtime
from triptych.runtime.gateway.http.fields import parse_json
from triptych.runtime.gateway.http.forms import read_form
from triptych.runtime.gateway.http.generation import Generation
from triptych.runtime.gateway.http.limits import Bodies, Keys, Places, Room
from triptych.runtime.gateway.http.probes import Readiness
from triptych.runtime.gateway.http.transcriptions import TranscriptionFormat
from triptych.runtime.gateway.http.wire import header, read_body, send_body, send_json
from triptych.runtime.metrics.http import HttpMetrics
from triptych.runtime.metrics.instances import Instances, Occupancy
from triptych.runtime.metrics.registry import CONTENT_TYPE, Metrics
from triptych.runtime.metrics.tracing import TRACEPARENT, valid_traceparent
from triptych.runtime.wire.rate import RateLimiter

logger = logging.getLogger(__name__)

LOADS_TIMEOUT = 2.0  # seconds that a scrape waits for the gateway; Prometheus gives up after ten
LARGE = 2**18  # bytes; a smaller body is parsed in less time than a thread takes to be woken up in a busy process
T = TypeVar("T")
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


class ServedName:
    """What the gateway calls its model: asked once it is needed, and again after a while, because a gateway may come back with another."""

    TTL = 30.0

    def __init__(self, client: AsyncClient, clock: Clock):
        self._client = client
        self._clock = clock
        self._asked = float("-inf")
        self.known: str | None = None
        self.max_model_len = 0

    async def get(self) -> str:
        """Raises TriptychError if the gateway cannot be asked and never could."""
        if self.known is None or self._clock.now() >= self._asked + self.TTL:
            info = await self._client.model_info()
            self.known, self.max_model_len, self._asked = info.model, info.max_model_len, self._clock.now()
        return self.known


class Api:
    """The handlers of one server."""

    def __init__(self, service: Service, metrics: Metrics, served: ServedName, readiness: Readiness):
        self._service = service
        self._metrics = metrics
        self._served = served
        self._instances = Instances()
        metrics.add(self._instances)
        self._created = int(time.time())
        self._places = Places(service.config.max_in_flight)
        self._bodies = Bodies(service.config.max_bodies_bytes)
        self._readiness = readiness

    def routes(self) -> list[Route]:
        get, post = ["GET", "HEAD"], ["POST"]
        table: list[tuple[str, Handler, list[str]]] = [
            ("/v1/chat/completions", self.chat, post),
            ("/v1/completions", self.completions, post),
            ("/v1/audio/transcriptions", partial(self.transcribe, translate=False), post),
            ("/v1/audio/translations", partial(self.transcribe, translate=True), post),
            ("/v1/models", self.models, get),
            ("/v1/models/{model:path}", self.model, get),
            ("/health", self.health, get),
            ("/healthz", self.health, get),
            ("/live", self.live, get),
            ("/livez", self.live, get),
            ("/ready", self.ready, get),
            ("/readyz", self.ready, get),
            ("/metrics", self.metrics, get),
            ("/version", self.version, get),
        ]
        return [Route(path, _Endpoint(path, handler), methods=methods) for path, handler, methods in table]

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        id = f"chatcmpl-{secrets.token_hex(16)}"
        with self._bodies.room() as room:
            generation = await self._parsed(scope, receive, room, lambda body: chat.parse(body, id))
            form = ChatFormat(generation, generation.model or await self._name())
            await self._generate(scope, generation, form, receive, send)

    async def completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        id, most = f"cmpl-{secrets.token_hex(16)}", self._service.config.max_prompts
        with self._bodies.room() as room:
            generation, echo = await self._parsed(scope, receive, room, lambda body: completions.parse(body, id, most))
            try:
                texts = await completions.echoed_texts(self._service.client, generation) if echo.wanted else []
            except TriptychError as error:
                raise from_runtime(error, generation.fields) from error
            form = CompletionFormat(generation, generation.model or await self._name(), echo, texts)
            await self._generate(scope, generation, form, receive, send)

    async def transcribe(self, scope: Scope, receive: Receive, send: Send, *, translate: bool) -> None:
        config = self._service.config
        with self._bodies.room() as room:
            form = await read_form(scope, receive, config.max_body_bytes, config.body_timeout, room)
            generation, wanted = transcriptions.parse(form, f"transcript-{secrets.token_hex(16)}", translate)
            await self._generate(scope, generation, TranscriptionFormat(generation, wanted), receive, send)

    async def models(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, {"object": "list", "data": [self._card(await self._name())]})

    async def model(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted, name = scope["path_params"]["model"], await self._name()
        if wanted != name:
            raise HttpError(
                404,
                f"model {wanted[:200]!r} is not served here; expected {name!r}",
                param="model",
                code="model_not_found",
            )
        await send_json(send, 200, self._card(name))

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            healthy = await self._service.client.ready()
        except TriptychError as error:
            raise from_runtime(error) from error
        await _probed(send, None if healthy else "the gateway cannot place requests")

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _probed(send, None)

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _probed(send, await self._readiness.reason())

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """With the instances as the gateway sees them, so that one target is enough for a small deployment."""
        try:
            async with asyncio.timeout(LOADS_TIMEOUT):
                self._instances.values = [_occupancy(one) for one in (await self._service.client.loads()).instances]
                await self._served.get()
        except (TriptychError, TimeoutError) as error:
            self._instances.values = ()  # unknown is shown as nothing, not as what was true once
            logger.warning("the gateway does not tell its loads: %s", error)
        await send_body(send, 200, self._metrics.text(), {"content-type": CONTENT_TYPE})

    async def version(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, {"version": __version__})

    async def _parsed(self, scope: Scope, receive: Receive, room: Room, parse: Callable[[dict[str, Any]], T]) -> T:
        """What `parse` makes of the body; of a large one on a thread, so that the other requests' tokens go on."""
        config = self._service.config
        data = await read_body(scope, receive, config.max_body_bytes, config.body_timeout, room)
        if len(data) <= LARGE:
            return parse(parse_json(data))
        return await asyncio.to_thread(lambda: parse(parse_json(data)))

    async def _generate(self, scope: Scope, generation: Generation, form: Format, receive: Receive, send: Send) -> None:
        scope["state"]["generation"] = generation.id
        given = next(iter(header(scope, TRACEPARENT.encode())), b"").decode("latin-1")
        generation = replace(generation, traceparent=given if valid_traceparent(given) else "")
        with self._places.one():
            await answer(self._service, generation, form, receive, send)

    async def _name(self) -> str:
        try:
            return await self._served.get()
        except TriptychError as error:
            raise from_runtime(error) from error

    def _card(self, name: str) -> dict[str, Any]:
        """OpenAI's fields, and vLLM's `max_model_len`."""
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "triptych",
            "max_model_len": self._served.max_model_len,
        }


class _Endpoint:
    """A handler as an ASGI application that tells which route it is."""

    def __init__(self, route: str, handler: Handler):
        self._route = route
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["route"] = self._route
        await self._handler(scope, receive, send)


def build(api: Api, keys: Keys, limiter: RateLimiter | None, metrics: HttpMetrics, clock: Clock) -> ASGIApp:
    """The whole application. Routes are matched exactly: a slash more is another path."""

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(404, "no such route")

    router = Router(api.routes(), default=unknown, redirect_slashes=False)

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # what makes the router raise 405 instead of answering in plain text
        await router(scope, receive, send)

    return Door(routed, keys, limiter, metrics, clock)


def _occupancy(one: pb.InstanceOccupancy) -> Occupancy:
    return Occupancy(
        one.id, tuple(one.roles), one.running, one.waiting, one.free_pages, one.num_pages, one.free_slots, one.staged
    )


async def _probed(send: Send, reason: str | None) -> None:
    if reason is None:
        await send_json(send, 200, {"status": "ok"})
    else:
        await send_json(send, 503, {"status": "unavailable", "reason": reason}, {"retry-after": "1"})

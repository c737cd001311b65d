"""A generation to its client: one JSON object, or events while it runs. Whatever ends it early (the client goes, the time is up, the server stops)
cancels it at the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import Receive, Send

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import AsyncClient, Chunk, Result
from triptych.runtime.core.errors import DeadlineError, TriptychError
from triptych.runtime.gateway.http.config import HttpConfig
from triptych.runtime.gateway.http.errors import HttpError, from_runtime
from triptych.runtime.gateway.http.generation import Generation, Totals, chunks, started
from triptych.runtime.gateway.http.wire import TEXT_TYPE, ClientGoneError, Events, attended, send_body, send_json
from triptych.runtime.metrics.observer import spent_by
from triptych.runtime.metrics.requests import RequestMetrics, Watch

LAST_WORDS = 1.0  # seconds that a client gets to take the error that ends its stream


class Format(Protocol):
    """An endpoint's objects: `ChatFormat`, `CompletionFormat`, `TranscriptionFormat`. A whole answer that is no object is sent as plain text."""

    def ready(self, results: Sequence[Result]) -> bool: ...
    def opening(self, results: Sequence[Result]) -> list[dict[str, Any]]: ...
    def piece(self, prompt: int, chunk: Chunk) -> dict[str, Any] | None: ...
    def closing(self, usage: dict[str, Any]) -> dict[str, Any]: ...
    def whole(self, results: Sequence[Result], usage: dict[str, Any]) -> dict[str, Any] | str: ...


@dataclass(frozen=True)
class Service:
    """What answering needs.

    Attributes:
        stopping: set with the error that running requests end with when the server stops.
        served: called whenever a request has ended well.
    """

    client: AsyncClient
    config: HttpConfig
    metrics: RequestMetrics
    stopping: asyncio.Future[HttpError]
    served: Callable[[], None]


async def answer(service: Service, generation: Generation, form: Format, receive: Receive, send: Send) -> None:
    """Generate and send. Raises HttpError as long as nothing was sent; after that the error is the stream's last event."""
    watch = service.metrics.begin()
    events = Events(send)
    work = _Work(service, generation, form, watch)
    try:
        await attended(receive, service.stopping, work.stream(events) if generation.stream else work.whole(send))
    except TriptychError as error:
        watch.fail(error.status.name)
        await _end(events, from_runtime(error, generation.fields))
    except ClientGoneError:
        watch.fail("CANCELLED")
        raise
    except HttpError as error:
        watch.fail("UNAVAILABLE")
        await _end(events, error)
    finally:
        watch.fail("CANCELLED")  # nothing, where it has ended


async def _end(events: Events, error: HttpError) -> None:
    if not events.started:
        raise error
    async with asyncio.timeout(LAST_WORDS):  # where it does not take them either, the connection is cut
        await events.failed(error.body())


class _Work:
    """One generation, run once."""

    def __init__(self, service: Service, generation: Generation, form: Format, watch: Watch):
        self._service = service
        self._generation = generation
        self._form = form
        self._watch = watch
        self._totals = Totals()

    async def whole(self, send: Send) -> None:
        await self._run(None)
        self._finish()
        whole = self._form.whole(self._totals.results, self._totals.usage())
        if isinstance(whole, str):
            await send_body(send, 200, whole.encode(), {"content-type": TEXT_TYPE})
        else:
            await send_json(send, 200, whole)

    async def stream(self, events: Events) -> None:
        await self._run(events)
        if self._generation.include_usage:
            await events.data(self._form.closing(self._totals.usage()))
        self._finish()
        await events.done()

    async def _run(self, events: Events | None) -> None:
        """Raises TriptychError."""
        limit = self._service.config.request_timeout
        try:
            # The gateway's own deadline comes first and says more; this one also ends a client that does not read.
            async with (
                asyncio.timeout(limit + LAST_WORDS),
                started(self._service.client, self._generation, limit) as streams,
            ):
                self._totals.results = [stream.result for stream in streams]
                held: list[tuple[int, Chunk]] | None = []
                async for prompt, chunk in chunks(streams):
                    self._count(prompt, chunk)
                    if events is None:
                        continue
                    if held is None:
                        await self._send(events, self._form.piece(prompt, chunk))
                        continue
                    held.append((prompt, chunk))
                    if self._form.ready(self._totals.results):
                        await self._open(events, held)
                        held = None
                if events is not None and held is not None:
                    await self._open(events, held)  # what had to come first came last
        except TimeoutError:
            raise DeadlineError(f"the request was not finished and delivered within {limit:g} s") from None

    def _count(self, prompt: int, chunk: Chunk) -> None:
        self._totals.completion_tokens += len(chunk.tokens)
        self._watch.tokens(prompt * self._generation.samples + chunk.sample, len(chunk.tokens))

    async def _open(self, events: Events, held: list[tuple[int, Chunk]]) -> None:
        for piece in self._form.opening(self._totals.results):
            await self._send(events, piece)
        for prompt, chunk in held:
            await self._send(events, self._form.piece(prompt, chunk))

    async def _send(self, events: Events, piece: dict[str, Any] | None) -> None:
        if piece is None:
            return
        if self._generation.include_usage:
            piece["usage"] = self._totals.usage() if self._generation.continuous_usage else None
        await events.data(piece)

    def _finish(self) -> None:
        """Before the last byte goes out: whoever has read the answer finds it counted."""
        results = self._totals.results
        reasons = [sample.finish_reason or "stop" for result in results for sample in result.samples]
        self._service.served()
        self._watch.end(reasons, [spent_by(pb.Summary(usage=r.usage, timings=r.timings)) for r in results])

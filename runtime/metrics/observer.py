"""What the gateway tells of each request when it has ended: metrics, a span, a log line. It watches what is written to the client and changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.errors import Status
from triptych.runtime.metrics.registry import Metrics
from triptych.runtime.metrics.requests import RequestMetrics, Spent
from triptych.runtime.metrics.tracing import TRACEPARENT, Ended, NoTracer, Tracer, valid_traceparent
from triptych.runtime.wire import logs

log = logging.getLogger(__name__)

Write = Callable[[pb.GenerateResponse], Awaitable[object]]
OURS = frozenset(
    {Status.INTERNAL, Status.UNAVAILABLE, Status.DATA_LOSS, Status.FAILED_PRECONDITION, Status.UNIMPLEMENTED}
)
"""Statuses that whoever runs the server wants to read about; the others are the client's own doing, or told by metrics."""


class RequestObserver:
    """One for each gateway."""

    def __init__(self, metrics: RequestMetrics, tracer: Tracer, clock: Clock, model: str):
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._model = model

    def begin(self, id: str, metadata: Iterable[tuple[str, str | bytes]] | None = ()) -> Seen:
        """A request arrived, with the id that its client gave it (or none), and the metadata of its call, which may hold a W3C trace context.
        `Seen.end` must be called."""
        parents = [str(value) for key, value in metadata or () if key == TRACEPARENT]
        return Seen(self._metrics, self._tracer, self._clock, self._model, id, next(iter(parents), ""))


def unobserved(clock: Clock) -> RequestObserver:
    """For gateways whose metrics nobody reads."""
    return RequestObserver(RequestMetrics(Metrics(), clock), NoTracer(), clock, "")


class Seen:
    """One request as it is observed."""

    def __init__(self, metrics: RequestMetrics, tracer: Tracer, clock: Clock, model: str, id: str, traceparent: str):
        self._watch = metrics.begin()
        self._tracer = tracer
        self._clock = clock
        self._model = model
        self._id = id
        self._traceparent = traceparent if valid_traceparent(traceparent) else ""
        self._arrived, self._began = clock.now(), time.time()
        self._reasons: list[str] = []
        self._summary: pb.Summary | None = None
        logs.request_id.set(id)

    def through(self, id: str, write: Write) -> Write:
        """`write`, observed, of the request that is known as `id` from now on."""
        self._id = id
        logs.request_id.set(id)

        async def observed(response: pb.GenerateResponse) -> object:
            result = await write(response)
            kind = response.WhichOneof("kind")
            if kind == "delta":
                self._watch.tokens(response.delta.sample, len(response.delta.tokens))
            elif kind == "completion":
                self._reasons.append(response.completion.finish_reason)
            elif kind == "summary":
                self._summary = response.summary
            return result

        return observed

    def end(self, status: Status) -> None:
        """It has ended. A request that ended well but whose summary was not written counts as cancelled."""
        if status is Status.OK and self._summary is not None:
            self._watch.end(self._reasons, [spent_by(self._summary)])
        else:
            self._watch.fail(Status.CANCELLED.name if status is Status.OK else status.name)
        seconds = self._clock.now() - self._arrived
        level = logging.WARNING if status in OURS else logging.DEBUG
        log.log(level, "request %s ended %s after %.3f s", self._id or "(unnamed)", status.name, seconds)
        self._tracer.ended(
            Ended(
                self._id,
                self._model,
                self._began,
                seconds,
                status.name,
                self._traceparent,
                self._summary,
                self._reasons,
            )
        )
        logs.request_id.set("")


def spent_by(summary: pb.Summary) -> Spent:
    """A summary's usage and timings."""
    usage, timings = summary.usage, summary.timings
    return Spent(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        queue=timings.queue,
        prefill=timings.prefill,
        transfer=timings.transfer,
        first_token=timings.first_token,
        total=timings.total,
        kv_bytes=timings.kv_bytes,
        preemptions=timings.preemptions,
    )

"""A request's stages as OpenTelemetry spans, from the gateway's view of it: queue, prefill, transfer and decode under one span for the request.

Spans are made when a request has ended, from the times that the stages reported, so tracing costs nothing while tokens flow. Nothing of OpenTelemetry is imported
unless an endpoint is configured. A span's place in time is exact for the request, queue, prefill and decode; a transfer's length is the reported
one, and it is shown as ending with prefill or, when it took longer, as having begun with it (it runs beside prefill).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import ConfigError

TRACEPARENT = "traceparent"
EXPORT_TIMEOUT = 3.0  # seconds for a batch, retries included: what is left at the end may hold up a process for as long
_PARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class Ended:
    """A request that has ended.

    Attributes:
        began, seconds: wall-clock time of its arrival, and how long it took.
        status: OK, or the name of the error status.
        traceparent: W3C trace context of the caller; empty: none.
        summary: usage and timings, if it ended well.
        reasons: finish reason of every sample.
    """

    id: str
    model: str
    began: float
    seconds: float
    status: str
    traceparent: str = ""
    summary: pb.Summary | None = None
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Stage:
    """A span under the request's: seconds from the request's beginning."""

    name: str
    begin: float
    end: float
    attributes: Mapping[str, str | int | float]


class Tracer(Protocol):
    """Where ended requests are told."""

    def ended(self, request: Ended) -> None: ...
    def close(self) -> None: ...


class NoTracer:
    """For processes without an exporter."""

    def ended(self, request: Ended) -> None:
        pass

    def close(self) -> None:
        pass


def valid_traceparent(text: str) -> bool:
    """Whether `text` is a traceparent of version 00 (W3C Trace Context)."""
    return _PARENT.fullmatch(text) is not None


def stages(request: Ended) -> list[Stage]:
    """The stages that happened, in order."""
    if request.summary is None:
        return []
    t = request.summary.timings
    prefilled = t.queue + t.prefill
    found = [
        Stage("queue", 0.0, t.queue, {}),
        Stage("prefill", t.queue, prefilled, {"triptych.instance": t.prefill_instance}),
    ]
    if t.kv_bytes:
        end = max(prefilled, t.queue + t.transfer)
        moved = {
            "triptych.kv.bytes": t.kv_bytes,
            "triptych.kv.pages": t.pages_pulled,
            "triptych.kv.pages_skipped": t.pages_skipped,
        }
        found.append(Stage("transfer", end - t.transfer, end, moved))
    found.append(Stage("decode", t.first_token, t.total, {"triptych.instance": t.decode_instance}))
    return found


def attributes(request: Ended) -> dict[str, Any]:
    """What is said of the request itself; names of OpenTelemetry's conventions for generative AI where they have one."""
    said: dict[str, Any] = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "triptych",
        "gen_ai.request.model": request.model,
        "triptych.request.id": request.id,
        "triptych.status": request.status,
    }
    if request.reasons:
        said["gen_ai.response.finish_reasons"] = list(request.reasons)
    if request.summary is not None:
        usage, timings = request.summary.usage, request.summary.timings
        said |= {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "triptych.usage.cached_tokens": usage.cached_tokens,
            "triptych.time_to_first_token": timings.first_token,
            "triptych.preemptions": timings.preemptions,
        }
    return said


class OtelTracer:
    """Sends spans through OpenTelemetry's SDK, in batches and from a thread of its own.

    Args:
        processor: takes spans that have ended (an `opentelemetry.sdk.trace.SpanProcessor`).
        process: `service.name` of the spans.
    """

    def __init__(self, processor: Any, process: str):
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create({"service.name": process}), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("triptych")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, request: Ended) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.status import Status, StatusCode

        parent = self._propagator.extract({TRACEPARENT: request.traceparent}) if request.traceparent else None

        def at(seconds: float) -> int:
            return int((request.began + seconds) * 1e9)

        span = self._tracer.start_span(
            "generate", context=parent, kind=SpanKind.SERVER, start_time=at(0.0), attributes=attributes(request)
        )
        if request.status != "OK":
            span.set_status(Status(StatusCode.ERROR, request.status))
        inside = set_span_in_context(span)
        for stage in stages(request):
            child = self._tracer.start_span(
                stage.name, context=inside, start_time=at(stage.begin), attributes=dict(stage.attributes)
            )
            child.end(at(stage.end))
        span.end(at(request.seconds))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_tracer(endpoint: str | None, process: str) -> Tracer:
    """A tracer that sends to `endpoint` (OTLP over HTTP, such as http://localhost:4318/v1/traces); without one, none.

    Raises ConfigError where the packages are missing.
    """
    if endpoint is None:
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'triptych[otel]'") from error
    return OtelTracer(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT)), process)

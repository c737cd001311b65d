"""What is told of a request when it has ended: metrics, a span with its stages, a log line with its id."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from io import StringIO

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.clock import ManualClock
from triptych.runtime.core.errors import Status
from triptych.runtime.metrics.observer import RequestObserver
from triptych.runtime.metrics.registry import Metrics
from triptych.runtime.metrics.requests import RequestMetrics
from triptych.runtime.metrics.tracing import NoTracer, OtelTracer, open_tracer, valid_traceparent
from triptych.runtime.wire import logs

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TIMINGS = pb.Timings(
    queue=0.5, prefill=1.0, transfer=1.25, first_token=1.5, total=3.0, kv_bytes=4096, pages_pulled=2,
    prefill_instance="prefill-0", decode_instance="decode-0",
)  # fmt: skip
RESPONSES = [
    pb.GenerateResponse(prompt=pb.PromptInfo(request_id="r", prompt_tokens=5)),
    pb.GenerateResponse(delta=pb.Delta(sample=0, tokens=[pb.TokenDetail(token=1), pb.TokenDetail(token=2)])),
    pb.GenerateResponse(completion=pb.Completion(sample=0, finish_reason="stop")),
    pb.GenerateResponse(summary=pb.Summary(usage=pb.Usage(prompt_tokens=5, completion_tokens=2), timings=TIMINGS)),
]


class World:
    """An observer, what it measured, and the spans that it made."""

    def __init__(self) -> None:
        self.clock, self.metrics, self.exporter = ManualClock(), Metrics(), InMemorySpanExporter()
        tracer = OtelTracer(SimpleSpanProcessor(self.exporter), "gateway")
        self.observer = RequestObserver(RequestMetrics(self.metrics, self.clock), tracer, self.clock, "toy")

    def run(
        self, responses: list[pb.GenerateResponse], status: Status, traceparent: str = ""
    ) -> list[pb.GenerateResponse]:
        """One request from begin to end; what reached the client."""
        written: list[pb.GenerateResponse] = []

        async def write(response: pb.GenerateResponse) -> None:
            written.append(response)

        async def main() -> None:
            seen = self.observer.begin("", [("user-agent", "x"), ("traceparent", traceparent)])
            through = seen.through("req-1", write)
            for response in responses:
                await through(response)
            self.clock.advance(3.0)
            seen.end(status)

        asyncio.run(main())
        return written

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


def seconds(span: ReadableSpan, since: ReadableSpan) -> tuple[float, float]:
    """When a span began and ended, after another began."""
    assert span.start_time and span.end_time and since.start_time
    return round((span.start_time - since.start_time) / 1e9, 3), round((span.end_time - since.start_time) / 1e9, 3)


def test_a_request_is_a_span_with_its_stages_inside() -> None:
    world = World()
    assert world.run(RESPONSES, Status.OK, CALLER) == RESPONSES
    spans = world.spans()
    whole = spans["generate"]
    assert spans.keys() == {"generate", "queue", "prefill", "transfer", "decode"}
    assert whole.parent is not None and f"{whole.parent.trace_id:032x}" == CALLER.split("-")[1]
    assert all(span.parent == whole.context for name, span in spans.items() if name != "generate")
    assert {name: seconds(span, whole) for name, span in spans.items()} == {
        "generate": (0.0, 3.0),
        "queue": (0.0, 0.5),
        "prefill": (0.5, 1.5),
        "transfer": (0.5, 1.75),
        "decode": (1.5, 3.0),
    }
    said = dict(whole.attributes or {})
    assert said["gen_ai.request.model"] == "toy" and said["gen_ai.usage.output_tokens"] == 2
    assert said["triptych.request.id"] == "req-1" and said["gen_ai.response.finish_reasons"] == ("stop",)
    assert dict(spans["decode"].attributes or {}) == {"triptych.instance": "decode-0"}
    assert b"triptych_generation_tokens_total 2.0" in world.metrics.text()


@pytest.mark.parametrize(
    ("status", "reason"), [(Status.UNAVAILABLE, "error"), (Status.CANCELLED, "abort"), (Status.OK, "abort")]
)
def test_a_request_that_failed_has_its_status_and_no_stages(status: Status, reason: str) -> None:
    world = World()
    world.run(RESPONSES[:2], status, "not a traceparent")
    (whole,) = world.spans().values()
    assert whole.parent is None and dict(whole.attributes or {})["triptych.status"] == status.name
    assert whole.status.is_ok is (status is Status.OK)
    assert f'triptych_request_success_total{{finished_reason="{reason}"}} 1.0'.encode() in world.metrics.text()


def test_trace_contexts_are_checked() -> None:
    assert valid_traceparent(CALLER)
    zeros = "00-" + "0" * 32 + "-b7ad6b7169203331-01"
    assert not any(
        map(valid_traceparent, ("", "x", zeros, CALLER + "-extra", CALLER.upper(), CALLER.replace("00-", "ff-", 1)))
    )


def test_without_an_endpoint_nothing_is_imported() -> None:
    assert isinstance(open_tracer(None, "gateway"), NoTracer)
    code = (
        "import sys; from triptych.runtime.metrics import observer, tracing; tracing.open_tracer(None, 'x');"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_collector_that_is_not_there_hurts_nobody() -> None:
    tracer = open_tracer("http://127.0.0.1:1/v1/traces", "gateway")
    clock = ManualClock()
    seen = RequestObserver(RequestMetrics(Metrics(), clock), tracer, clock, "toy").begin("r")
    seen.end(Status.INTERNAL)


def test_lines_carry_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    ours, out = logging.getLogger("triptych"), StringIO()
    levels = root.level, ours.level
    try:
        logs.configure("info", "json", process="gateway", stream=out)
        token = logs.request_id.set("req-7")
        logging.getLogger("triptych.module").warning("what %s", "happened")
        logs.request_id.reset(token)
        try:
            raise ValueError("wrong")
        except ValueError:
            logging.getLogger("other.module").exception("oh")
        first, second = map(json.loads, out.getvalue().splitlines())
        assert first.pop("time").endswith("+00:00")
        assert first == {
            "level": "warning", "logger": "triptych.module", "message": "what happened", "process": "gateway", "request_id": "req-7"
        }  # fmt: skip
        assert "request_id" not in second and "ValueError: wrong" in second["exception"]
        logs.configure("debug", stream=(text := StringIO()))
        logging.getLogger("other.module").debug("nobody wants to know")
        logs.request_id.set("req-8")
        logging.getLogger("triptych.module").debug("hello")
        assert text.getvalue() == "DEBUG triptych.module: hello [req-8]\n"
    finally:
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        logs.request_id.set("")

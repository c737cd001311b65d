"""What requests took, as whoever serves clients sees it (the gRPC gateway, the HTTP server). Names and meanings are vLLM's.

One `Watch` accompanies a request. TTFT and end-to-end latency run from its arrival here; the gap between two messages of a sample is an
inter-token latency, each of its tokens an equal share of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.clock import Clock
from triptych.runtime.metrics.registry import Metrics

FIRST_TOKEN_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 10.0, 40.0,
)  # fmt: skip
STAGE_BUCKETS = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0,
)  # fmt: skip
LENGTH_BUCKETS = tuple(float(2**power) for power in range(18))
REASONS = ("stop", "length", "abort", "error")


@dataclass(frozen=True)
class Spent:
    """What the gateway's summary says of a finished request: tokens, and seconds a stage."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue: float
    prefill: float
    transfer: float
    first_token: float
    total: float
    kv_bytes: int
    preemptions: int


class RequestMetrics:
    """The histograms and counters of requests. Each is one object of the process."""

    def __init__(self, metrics: Metrics, clock: Clock):
        self._clock = clock
        histogram, counter = metrics.histogram, metrics.counter
        self.ttft = histogram("time_to_first_token_seconds", "Arrival to the first token, seconds", FIRST_TOKEN_BUCKETS)
        self.itl = histogram("inter_token_latency_seconds", "Between two tokens of a sample, seconds", TOKEN_BUCKETS)
        self.tpot = histogram(
            "request_time_per_output_token_seconds", "Mean time between tokens of a request, seconds", TOKEN_BUCKETS
        )
        self.e2e = histogram("e2e_request_latency_seconds", "Arrival to the last token, seconds", STAGE_BUCKETS)
        self.queue = histogram(
            "request_queue_time_seconds", "Waiting before the first prompt token was computed, seconds", STAGE_BUCKETS
        )
        self.prefill = histogram("request_prefill_time_seconds", "Computing the prompt, seconds", STAGE_BUCKETS)
        self.decode = histogram("request_decode_time_seconds", "First token to the end, seconds", STAGE_BUCKETS)
        self.inference = histogram(
            "request_inference_time_seconds", "The end of queueing to the end, seconds", STAGE_BUCKETS
        )
        self.transfer = histogram("kv_xfer_time_seconds", "Pulling and checking KV, seconds", STAGE_BUCKETS)
        self.request_prompt = histogram("request_prompt_tokens", "Prompt tokens of a request", LENGTH_BUCKETS)
        self.request_generation = histogram(
            "request_generation_tokens", "Generated tokens of a request", LENGTH_BUCKETS
        )
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished requests")
        self.generation_tokens = counter("generation_tokens", "Tokens that went to clients")
        self.queries = counter("prefix_cache_queries", "Prompt tokens of finished requests, looked up in prefix caches")
        self.hits = counter("prefix_cache_hits", "Prompt tokens that prefill took from its prefix cache")
        self.preemptions = counter("num_preemptions", "Times that a sequence lost its pages and was recomputed")
        self.moved = counter("kv_bytes_transferred", "Bytes of KV pulled for finished requests")
        self.success = counter("request_success", "Requests that ended, by why", ("finished_reason",))
        self.failures = counter("request_failures", "Requests that ended with an error, by status", ("status",))
        self.running = metrics.gauge("requests_open", "Requests from arrival to end, here")
        for reason in REASONS:
            self.success.labels(reason)

    def begin(self) -> Watch:
        """A request arrived. Its watch must be ended."""
        return Watch(self, self._clock)


class Watch:
    """One request's times. `end` or `fail` is called exactly once; later calls do nothing."""

    def __init__(self, metrics: RequestMetrics, clock: Clock):
        self._metrics = metrics
        self._clock = clock
        self._arrived = clock.now()
        self._last: dict[int, float] = {}
        self._first: float | None = None
        self._tokens = 0
        self._open = True
        metrics.running.inc()

    def tokens(self, sample: int, count: int) -> None:
        """`count` tokens of a sample went to the client now. Samples of several prompts are numbered through."""
        if count < 1:
            return
        now = self._clock.now()
        self._metrics.generation_tokens.inc(count)
        self._tokens += count
        before = self._last.get(sample)
        self._last[sample] = now
        if self._first is None:
            self._first = now
            self._metrics.ttft.observe(now - self._arrived)
        if before is not None:
            for _ in range(count):
                self._metrics.itl.observe((now - before) / count)

    def end(self, reasons: list[str], spent: list[Spent]) -> None:
        """It ended well: the finish reason of every sample, and what the gateway says of every prompt."""
        if not self._close():
            return
        metrics, now = self._metrics, self._clock.now()
        first = self._first if self._first is not None else now
        metrics.e2e.observe(now - self._arrived)
        metrics.decode.observe(now - first)
        per_sample = self._tokens / max(1, len(self._last))
        if per_sample > 1:
            metrics.tpot.observe((now - first) / (per_sample - 1))
        for reason in reasons:
            metrics.success.labels(reason if reason in REASONS else "stop").inc()
        for one in spent:
            metrics.queue.observe(one.queue)
            metrics.prefill.observe(one.prefill)
            metrics.inference.observe(max(0.0, one.total - one.queue))
            if one.kv_bytes:
                metrics.transfer.observe(one.transfer)
            metrics.moved.inc(one.kv_bytes)
            metrics.request_prompt.observe(one.prompt_tokens)
            metrics.request_generation.observe(one.completion_tokens)
            metrics.prompt_tokens.inc(one.prompt_tokens)
            metrics.queries.inc(one.prompt_tokens)
            metrics.hits.inc(one.cached_tokens)
            metrics.preemptions.inc(one.preemptions)

    def fail(self, status: str) -> None:
        """It ended with an error status, by name; CANCELLED counts as an abort."""
        if self._close():
            self._metrics.success.labels("abort" if status == "CANCELLED" else "error").inc()
            self._metrics.failures.labels(status).inc()

    def _close(self) -> bool:
        was_open, self._open = self._open, False
        if was_open:
            self._metrics.running.dec()
        return was_open

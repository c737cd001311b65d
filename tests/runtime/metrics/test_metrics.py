"""Names that dashboards know, labels that are bounded, values as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from triptych.runtime.core.clock import ManualClock
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Load, Role
from triptych.runtime.metrics.gateway_media import GatewayMedia
from triptych.runtime.metrics.http import HttpMetrics
from triptych.runtime.metrics.registry import ALIASED, Metrics
from triptych.runtime.metrics.requests import RequestMetrics, Spent
from triptych.runtime.metrics.scheduler import SchedulerMetrics
from triptych.runtime.metrics.worker import WorkerMetrics, occupancy


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample that Prometheus would read, by `name{label=value,...}`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


INFO = InstanceInfo(
    InstanceRef("decode-0", 7),
    "worker-0",
    "127.0.0.1:1",
    frozenset({Role.DECODE}),
    Capacity(8, 64, 16, 128),
    Compatibility(1, "toy", "r1", "float32", 16, "v1"),
)
LOAD = Load(running=2, waiting=1, waiting_tokens=5, free_pages=48, free_slots=6, staged=3)


@dataclass
class OneSnapshot:
    info: InstanceInfo = INFO
    load: Load = LOAD
    heartbeat_age: float = 0.5
    tasks: int = 4
    resources: dict[str, int] = field(default_factory=lambda: {"staging_bytes": 4096, "pages_total": 64})
    counters: dict[str, int] = field(default_factory=lambda: {"steps": 9, "device_wait_us": 1_500_000, "new": 1})

    async def snapshot(self) -> OneSnapshot:
        return self


@dataclass
class OneCluster:
    instances: tuple[OneSnapshot, ...] = (OneSnapshot(),)
    queued: int = 2
    active: int = 5
    counters: dict[str, int] = field(default_factory=lambda: {"submitted": 9, "failed_unavailable": 3})


def test_a_requests_times_are_told_apart() -> None:
    clock, metrics = ManualClock(), Metrics(lambda: {"model_name": "toy"})
    requests = RequestMetrics(metrics, clock)
    watch = requests.begin()
    assert samples(metrics)["triptych_requests_open{model_name=toy}"] == 1
    clock.advance(0.5)
    watch.tokens(0, 1)
    clock.advance(0.2)
    watch.tokens(0, 2)
    watch.tokens(1, 1)
    watch.end(["stop", "length"], [Spent(10, 4, 6, 0.125, 0.25, 0.0625, 0.5, 0.75, 4096, 1)])
    watch.end(["stop"], [])
    watch.fail("INTERNAL")
    found = samples(metrics)

    def value(name: str, labels: str = "") -> float:
        assert found[f"triptych_{name}{{{labels}model_name=toy}}"] == found.get(
            f"vllm:{name}{{{labels}model_name=toy}}", found[f"triptych_{name}{{{labels}model_name=toy}}"]
        )
        return found[f"triptych_{name}{{{labels}model_name=toy}}"]

    assert value("time_to_first_token_seconds_sum") == 0.5
    assert value("inter_token_latency_seconds_count") == 2
    assert value("inter_token_latency_seconds_sum") == pytest.approx(0.2)
    assert value("e2e_request_latency_seconds_sum") == pytest.approx(0.7)
    assert value("request_time_per_output_token_seconds_sum") == pytest.approx(0.2)
    assert (value("request_queue_time_seconds_sum"), value("request_prefill_time_seconds_sum")) == (0.125, 0.25)
    assert (value("kv_xfer_time_seconds_sum"), value("kv_bytes_transferred_total")) == (0.0625, 4096)
    assert (value("prompt_tokens_total"), value("generation_tokens_total")) == (10, 4)
    assert (value("prefix_cache_queries_total"), value("prefix_cache_hits_total")) == (10, 6)
    assert (value("num_preemptions_total"), value("requests_open")) == (1, 0)
    assert [value("request_success_total", f"finished_reason={r},") for r in ("stop", "length", "abort", "error")] == [
        1,
        1,
        0,
        0,
    ]


def test_failures_are_counted_by_status() -> None:
    metrics = Metrics()
    requests = RequestMetrics(metrics, ManualClock())
    for status in ("CANCELLED", "UNAVAILABLE", "UNAVAILABLE"):
        requests.begin().fail(status)
    found = samples(metrics)
    assert found["triptych_request_failures_total{status=UNAVAILABLE}"] == 2
    assert (
        found["vllm:request_success_total{finished_reason=abort}"],
        found["vllm:request_success_total{finished_reason=error}"],
    ) == (1, 2)


def test_every_name_that_has_an_alias_exists_somewhere() -> None:
    clock = ManualClock()
    names = set()
    door, worker = Metrics(), WorkerMetrics(lambda: [OneSnapshot()], "toy")
    RequestMetrics(door, clock)
    worker._shown.values = [occupancy(OneSnapshot())]
    for metrics in (door, worker.metrics):
        names |= {family.name for family in text_string_to_metric_families(metrics.text().decode())}
    assert {name.removeprefix("vllm:") for name in names if name.startswith("vllm:")} == ALIASED


def test_a_workers_instances() -> None:
    import asyncio

    worker = WorkerMetrics(lambda: [OneSnapshot()], "toy")
    assert not any("instance" in name for name in samples(worker.metrics))
    asyncio.run(worker.refresh())
    found, labels = samples(worker.metrics), "{instance=decode-0,model_name=toy,role=decode}"
    assert (found[f"vllm:num_requests_running{labels}"], found[f"vllm:kv_cache_usage_perc{labels}"]) == (2, 0.25)
    assert found[f"triptych_kv_staging_bytes{labels}"] == 4096
    assert found[f"triptych_engine_device_wait_seconds_total{labels}"] == 1.5
    assert found[f"triptych_engine_steps_total{labels}"] == 9


def test_the_scheduler() -> None:
    found, labels = samples(SchedulerMetrics(OneCluster).metrics), "{instance=decode-0,role=decode}"
    assert (found["triptych_scheduler_requests_queued{}"], found["triptych_scheduler_requests_active{}"]) == (2, 5)
    assert found["triptych_scheduler_events_total{event=submitted}"] == 9
    assert found["triptych_scheduler_failures_total{status=UNAVAILABLE}"] == 3
    assert (
        found[f"triptych_scheduler_instance_tasks{labels}"],
        found[f"triptych_scheduler_instance_waiting{labels}"],
    ) == (4, 1)


@dataclass
class OneKeep:
    held_bytes: int = 700
    idle_bytes: int = 90


@dataclass
class OneDesk:
    keep: OneKeep = field(default_factory=OneKeep)
    sent_bytes: int = 33


@dataclass
class OnePushes:
    brought: int = 5
    not_wanted: int = 4
    crowded: int = 3
    failed: int = 1
    bytes: int = 4000


@dataclass
class OneCourier:
    active: int = 2
    counts: OnePushes = field(default_factory=OnePushes)


def test_media_at_a_gateway() -> None:
    metrics, none = Metrics(), Metrics()
    metrics.add(GatewayMedia(OneDesk, OneCourier))
    none.add(GatewayMedia(lambda: None, OneCourier))
    found = samples(metrics)
    assert [
        found[f"triptych_gateway_media_{what}{{}}"] for what in ("held_bytes", "idle_bytes", "sent_bytes", "pushes")
    ] == [700, 90, 33, 2]
    assert found["triptych_gateway_media_pushed_total{outcome=not_wanted}"] == 4
    assert found["triptych_gateway_media_pushed_bytes_total{}"] == 4000
    assert not any("media" in name for name in samples(none)), "a model of text has nothing to show"


def test_media_at_a_worker() -> None:
    metrics = WorkerMetrics(list, "toy")
    snapshot = OneSnapshot(
        resources={"device_media_pool_bytes": 512, "media_pages_held": 3, "shelf_bytes": 99},
        counters={"encoded_items": 6},
    )
    metrics._shown.values = [occupancy(snapshot)]
    found, labels = samples(metrics.metrics), "{instance=decode-0,model_name=toy,role=decode}"
    assert found[f"triptych_device_media_pool_bytes{labels}"] == 512
    assert (found[f"triptych_media_pages_held{labels}"], found[f"triptych_media_shelf_bytes{labels}"]) == (3, 99)
    assert found[f"triptych_media_items_encoded_total{labels}"] == 6


def test_odd_methods_make_no_new_label() -> None:
    metrics = Metrics()
    http = HttpMetrics(metrics)
    http.answered("/v1/models", "BREW", 405, 0.01)
    assert samples(metrics)["triptych_http_requests_total{method=other,route=/v1/models,status=405}"] == 1


def test_the_process_itself_is_shown() -> None:
    assert samples(Metrics())["process_resident_memory_bytes{}"] > 1e6

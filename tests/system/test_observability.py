"""A real deployment can be watched: every process shows metrics that add up, probes, and JSON logs; `triptych top` shows its instances."""

from __future__ import annotations

import gzip
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.deployment import Deployment, deployed
from triptych.runtime.client import Client

pytestmark = pytest.mark.slow

PROMPT = list(range(100, 150))  # four pages: three of them are found again


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    while True:
        first = random.randrange(20_000, 30_000)
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


@pytest.fixture(scope="module")
def ports() -> int:
    return free_ports(5)


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP; `spans` are those so far, as (trace id, name)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.spans: list[tuple[str, str]] = []


class CollectorHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += [(span.trace_id.hex(), span.name) for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def deployment(ports: int, collector: Collector) -> Iterator[Deployment]:
    with deployed(
        f"--metrics-port={ports}",
        f"--http-port={ports + 4}",
        "--log-format=json",
        "--log-level=debug",
        f"--otlp-traces-endpoint=http://127.0.0.1:{collector.server_port}/v1/traces",
    ) as deployment:
        yield deployment


def scrape(address: str) -> dict[str, float]:
    """Sums of all samples of a name, so that labels do not matter."""
    answer = httpx2.get(f"http://{address}/metrics")
    answer.raise_for_status()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


@pytest.mark.limit(400)
def test_every_process_tells_its_part_of_the_same_requests(deployment: Deployment, ports: int) -> None:
    http = f"127.0.0.1:{ports + 4}"
    with Client(deployment.address) as client, openai.OpenAI(base_url=f"http://{http}/v1", api_key="none") as web:
        client.complete(token_ids=PROMPT, max_tokens=5, temperature=0, ignore_eos=True)
        web.completions.create(model="toy", prompt=PROMPT, max_tokens=5, temperature=0, extra_body={"ignore_eos": True})
    scheduler, gateway, *workers = (scrape(f"127.0.0.1:{ports + number}") for number in range(4))
    assert gateway["vllm:request_success_total"] == gateway["triptych_request_success_total"] == 2
    assert gateway["triptych_generation_tokens_total"] == 10 and gateway["triptych_prompt_tokens_total"] == 100
    assert gateway["triptych_prefix_cache_hits_total"] == 48
    assert gateway["triptych_time_to_first_token_seconds_count"] == 2
    assert gateway["triptych_requests_open"] == 0
    assert sum(worker["triptych_prefill_tokens_total"] for worker in workers) == 100 - 48
    moved = sum(worker["triptych_kv_bytes_received_total"] for worker in workers)
    assert moved == gateway["triptych_kv_bytes_transferred_total"] > 0
    assert all(worker["triptych_engine_programs_compiled_after_ready_total"] == 0 for worker in workers)
    assert all(
        worker["vllm:kv_cache_usage_perc"] == 0 and worker["triptych_kv_staging_bytes"] == 0 for worker in workers
    )
    assert scheduler["triptych_scheduler_instances"] == 2 and scheduler["triptych_scheduler_requests_active"] == 0
    web_side = scrape(http)
    assert web_side["triptych_generation_tokens_total"] == 5 and web_side["vllm:num_requests_running"] == 0
    assert web_side["triptych_kv_pages"] == sum(worker["triptych_kv_pages"] for worker in workers)
    for number in range(5):
        for path in ("live", "ready"):
            assert httpx2.get(f"http://127.0.0.1:{ports + number}/{path}").status_code == 200
    answered = next(line for line in deployment.log if "POST /v1/completions" in line)
    entry = json.loads(answered[answered.index("{") :])
    assert entry["process"] == "http" and entry["request_id"].startswith("req-")
    about = entry["message"].split()[-1]
    told = next(line for line in deployment.log if f"request {about} ended OK" in line)
    assert json.loads(told[told.index("{") :])["request_id"] == about


@pytest.mark.limit(400)
def test_a_callers_trace_holds_the_stages(collector: Collector, deployment: Deployment, ports: int) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    body = {"prompt": PROMPT[::-1], "max_tokens": 3, "ignore_eos": True}
    httpx2.post(
        f"http://127.0.0.1:{ports + 4}/v1/completions", json=body, headers=headers, timeout=60
    ).raise_for_status()
    until = time.monotonic() + 30
    while len(mine := [name for id, name in collector.spans if id == trace]) < 5:
        assert time.monotonic() < until, collector.spans
        time.sleep(0.1)
    assert sorted(mine) == ["decode", "generate", "prefill", "queue", "transfer"]


@pytest.mark.limit(400)
def test_top_shows_the_instances(deployment: Deployment) -> None:
    argv = [sys.executable, "-m", "triptych.tools.cli", "top", "--scheduler", deployment.scheduler]
    shown = json.loads(
        subprocess.run([*argv, "--once", "--json", "--interval=0.2"], check=True, capture_output=True).stdout
    )
    assert {one["id"]: (one["roles"], one["answers"], one["state"]) for one in shown["instances"]} == {
        "prefill-0": (["prefill"], True, "open"),
        "decode-0": (["decode"], True, "open"),
    }
    page = subprocess.run([*argv, "--once", "--interval=0.2"], check=True, capture_output=True, text=True).stdout
    assert "prefill-0" in page and "0 active, 0 queued" in page

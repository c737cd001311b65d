"""Pictures through encode, prefill and decode: the same tokens wherever the stages are, and nothing known is encoded again.

The toy vision-language model, real gRPC and real transfers inside one process; every topology is compared with the instance that has all roles.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.media import files
from tests.system.toy import NO_CACHE, shape_of
from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.runtime.client import Client, Result
from triptych.runtime.cluster.front import FrontConfig, served_model
from triptych.runtime.cluster.local import LocalCluster
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.core.topology import parse
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.worker.config import InstancePlan, WorkerConfig

pytestmark = pytest.mark.limit(600)
MODEL = "dummy:toy-vlm"
LENGTH = 160
WORKER: dict[str, Any] = {
    "name": "worker-0",
    "scheduler": "set by the cluster",
    "model": MODEL,
    "cache": NO_CACHE,
    "served_model_name": "toy-vlm",
    "num_pages": 129,
    "max_model_len": LENGTH,
    "chunk_tokens": 32,
    "max_num_seqs": 4,
}
# (topology, transport, tensor-parallel sizes of encode, prefill, decode)
ROWS = [
    ("1E1P1D", "grpc", (1, 2, 1)),
    pytest.param(("(E-P)-D", "device", (1, 1, 2)), marks=pytest.mark.slow),
    pytest.param(("2E1PD", "local", (2, 1, 1)), marks=pytest.mark.slow),
    pytest.param(("EP-D", "grpc", (2, 2, 1)), marks=pytest.mark.slow),
    pytest.param(("E-PD", "device", (1, 2, 2)), marks=pytest.mark.slow),
    pytest.param(("2E2P2D", "grpc", (1, 1, 1)), marks=pytest.mark.slow),
]


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


REQUESTS: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "<|pad|>What is this?", "images": [picture(1)], "max_tokens": 10, "temperature": 0},
    "two, in the middle": {
        "prompt": "First <|pad|> then <|pad|>: which?",
        "images": [picture(2), picture(3)],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": 1,
    },
    "the same twice": {"prompt": "<|pad|><|pad|>", "images": [picture(1)] * 2, "max_tokens": 6, "temperature": 0},
    "seeded samples": {
        "prompt": "<|pad|>" + "describe it at length, " * 3,
        "images": [picture(4)],
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 5,
        "n": 2,
    },
    "a video, as three pictures": {
        "prompt": "What happens? <|pad|>",
        "videos": [files.video_file(files.video_frames(30, 32, 24))],
        "max_tokens": 6,
        "temperature": 0,
    },
    "no picture": {"prompt": "just text here", "max_tokens": 10, "temperature": 0},
}


def cluster_of(
    topology: str, transport: str = "local", tp: tuple[int, int, int] = (1, 1, 1), model: str = MODEL, **changes: Any
) -> LocalCluster:
    """Every instance in one worker of this process."""
    resolved = resolve_model(model, NO_CACHE)
    served = served_model(resolved, open_text(resolved), name="toy-vlm", max_model_len=LENGTH)
    sizes = dict(zip("EPD", tp, strict=True))
    plans = tuple(
        InstancePlan(
            spec.id,
            spec.roles,
            max(sizes[role.value[0].upper()] for role in spec.roles),
            taking_turns=len(spec.loops) > 1,
        )
        for spec in parse(topology).instances()
    )
    settings = WORKER | {"model": model, "instances": plans, "transports": (TransportKind(transport),)}
    worker = WorkerConfig(**(settings | changes))
    front = FrontConfig(
        host="127.0.0.1",
        port=0,
        model=served,
        facts=ServerFacts("test", topology),
        scheduler=SchedulerConfig(),
        gateway=GatewayConfig("set by the front"),
    )
    return LocalCluster(front, [worker])


def run_one(client: Client, name: str, salt: str = "") -> Result:
    return client.complete(**REQUESTS[name], cache_salt=salt, timeout=120)


@pytest.fixture(scope="module")
def expected() -> Iterator[dict[str, Result]]:
    with cluster_of("EPD", prefix_cache=False, chunk_tokens=64) as cluster, Client(cluster.address) as client:
        yield {name: run_one(client, name) for name in REQUESTS}


def test_the_model_looks(expected: dict[str, Result]) -> None:
    """What the other tests rest on: another picture gives other numbers."""
    with cluster_of("EPD") as cluster, Client(cluster.address) as client:
        request: dict[str, Any] = REQUESTS["one picture"] | {"logprobs": 1}
        first = client.complete(**request)
        changed: dict[str, Any] = request | {"images": [picture(99)]}
        other = client.complete(**changed)
        again = client.complete(**request)
    numbers = [[token.logprob for token in result.samples[0].tokens] for result in (first, other, again)]
    assert numbers[0] == pytest.approx(numbers[2], abs=2e-4)
    assert numbers[0] != pytest.approx(numbers[1], abs=2e-3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}-{''.join(map(str, row[2]))}")
def test_the_same_tokens_everywhere(row: tuple[str, str, tuple[int, int, int]], expected: dict[str, Result]) -> None:
    """Cold, warm and all at once; nothing compiles meanwhile, and nothing is held afterwards."""
    with cluster_of(*row) as cluster, Client(cluster.address) as client:
        with no_compilation():
            for _ in range(2):
                for name, result in expected.items():
                    assert shape_of(run_one(client, name)) == shape_of(result), name
            with ThreadPoolExecutor(10) as threads:
                jobs = {
                    (name, n): threads.submit(run_one, client, name, f"{n % 2}") for name in REQUESTS for n in range(4)
                }
                for (name, _), job in jobs.items():
                    assert shape_of(job.result()) == shape_of(expected[name]), name
        for snapshot in cluster.snapshots():
            assert snapshot.resources["tasks"] == 0, snapshot
            assert snapshot.resources.get("media_pages_held", 0) == 0, snapshot
            assert snapshot.resources["staging_bytes"] == 0, snapshot


def test_a_picture_asked_about_by_many_is_encoded_once() -> None:
    """50 requests at once; then a second turn about it, which encodes nothing and pulls only what is new."""
    with cluster_of("2E1P1D", "grpc") as cluster, Client(cluster.address) as client:
        image = picture(7)

        def ask(number: int) -> Result:
            return client.complete(
                f"<|pad|>question {number}", images=[image], max_tokens=3, temperature=0, timeout=120
            )

        with ThreadPoolExecutor(50) as threads:
            list(threads.map(ask, range(50)))
        assert sum(encoded(cluster).values()) == 1
        first = client.complete("<|pad|>question 1 and more", images=[image], max_tokens=3, temperature=0)
        second = client.complete("<|pad|>question 1 and more", images=[image], max_tokens=3, temperature=0)
        assert sum(encoded(cluster).values()) == 1
        assert first.usage is not None and second.usage is not None and second.timings is not None
        assert second.usage.cached_tokens >= 16
        assert second.timings.pages_skipped >= 1
        assert second.timings.embedding_bytes == second.timings.encode_tasks == 0


def test_several_pictures_are_encoded_by_all_encode_instances() -> None:
    """Items of one request fan out, and their embeddings come together in the order of the prompt."""
    images = [picture(20 + n) for n in range(6)]
    request: dict[str, Any] = {
        "prompt": " ".join(f"{n}:<|pad|>" for n in range(6)),
        "images": images,
        "max_tokens": 8,
        "temperature": 0,
    }
    with cluster_of("EPD") as cluster, Client(cluster.address) as client:
        wanted = client.complete(**request)
    with cluster_of("3E1P1D", "grpc") as cluster, Client(cluster.address) as client:
        assert shape_of(client.complete(**request)) == shape_of(wanted)
        assert sorted(encoded(cluster).values()) == [2, 2, 2]


def encoded(cluster: LocalCluster) -> dict[str, int]:
    """Items that each encode instance has encoded."""
    return {
        snapshot.info.ref.id: snapshot.counters["encoded_items"]
        for snapshot in cluster.snapshots()
        if Role.ENCODE in snapshot.info.roles
    }

"""Clusters that serve the toy vision-language model inside the test process, and questions about pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tests.system.toy import NO_CACHE, PATIENT
from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.runtime.client import Client, Result
from triptych.runtime.cluster.front import FrontConfig, served_model
from triptych.runtime.cluster.local import LocalCluster
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.core.topology import parse
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.worker.config import InstancePlan, WorkerConfig

MODEL = "dummy:toy-vlm"
LENGTH = 160
ROWS = 16  # embeddings of a picture: one page
WORKER: dict[str, Any] = {
    "scheduler": "set by the cluster",
    "cache": NO_CACHE,
    "served_model_name": "toy-vlm",
    "num_pages": 129,
    "max_model_len": LENGTH,
    "chunk_tokens": 32,
    "max_num_seqs": 4,
    "encode_patches": 256,  # fifteen pictures a step; the default compiles two more programs for the same
}


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


GREEDY: dict[str, Any] = {"temperature": 0, "logprobs": 1}
A_THEN_B, B_THEN_A = "the picture of the first, then that of the second", "the second's, then the first's"
REQUESTS: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "<|pad|>What is this?", "images": [picture(1)], "max_tokens": 10, **GREEDY},
    A_THEN_B: {
        "prompt": "First <|pad|> then <|pad|>: which?",
        "images": [picture(2), picture(3)],
        "max_tokens": 8,
        **GREEDY,
    },
    B_THEN_A: {
        "prompt": "First <|pad|> then <|pad|>: which?",
        "images": [picture(3), picture(2)],
        "max_tokens": 8,
        **GREEDY,
    },
    "the same twice": {"prompt": "<|pad|><|pad|>", "images": [picture(1)] * 2, "max_tokens": 6, **GREEDY},
    "seeded samples": {
        "prompt": "<|pad|>" + "describe it at length, " * 3,
        "images": [picture(4)],
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 5,
        "n": 2,
        "logprobs": 1,
    },
    "late pictures": {
        "prompt": "a long story is told before anything can be seen: " + "<|pad|>" * 3,
        "images": [picture(5), picture(6), picture(1)],
        "max_tokens": 7,
        **GREEDY,
    },
    "no picture": {"prompt": "just text here", "max_tokens": 10, **GREEDY},
}
PICTURES = len({image for request in REQUESTS.values() for image in request.get("images", ())})


def run_one(client: Client, name: str, salt: str = "") -> Result:
    return client.complete(**REQUESTS[name], cache_salt=salt, timeout=120)


def plans_of(topology: str, tp: tuple[int, int, int] = (1, 1, 1)) -> tuple[InstancePlan, ...]:
    """The instances of a topology; `tp` are the tensor-parallel sizes of encode, prefill and decode. Shared instances take the largest."""
    sizes = dict(zip("EPD", tp, strict=True))
    return tuple(
        InstancePlan(
            spec.id,
            spec.roles,
            max(sizes[role.value[0].upper()] for role in spec.roles),
            taking_turns=len(spec.loops) > 1,
        )
        for spec in parse(topology).instances()
    )


def cluster_of(
    topology: str,
    transport: str = "local",
    tp: tuple[int, int, int] = (1, 1, 1),
    model: str = MODEL,
    *,
    processes: str = "one",
    **changes: Any,
) -> LocalCluster:
    """`processes` "one": all instances in one worker; "each": a worker for each (all of them still in this process)."""
    plans = plans_of(topology, tp)
    groups = [plans] if processes == "one" else [(plan,) for plan in plans]
    return cluster_with(groups, topology, model, transports=(TransportKind(transport),), **changes)


def cluster_with(
    groups: Sequence[Sequence[InstancePlan]], topology: str, model: str = MODEL, **changes: Any
) -> LocalCluster:
    """A worker for each group of instances."""
    resolved = resolve_model(model, NO_CACHE)
    front = FrontConfig(
        host="127.0.0.1",
        port=0,
        model=served_model(resolved, open_text(resolved), name="toy-vlm", max_model_len=LENGTH),
        facts=ServerFacts("test", topology),
        scheduler=PATIENT,
        gateway=GatewayConfig("set by the front"),
    )
    workers = [
        WorkerConfig(**(WORKER | {"name": f"worker-{index}", "model": model, "instances": tuple(group)} | changes))
        for index, group in enumerate(groups)
    ]
    return LocalCluster(front, workers)


def encoded(cluster: LocalCluster) -> dict[str, int]:
    """Items that each encode instance has encoded."""
    return {
        snapshot.info.ref.id: snapshot.counters["encoded_items"]
        for snapshot in cluster.snapshots()
        if Role.ENCODE in snapshot.info.roles
    }


def received(cluster: LocalCluster) -> tuple[int, int]:
    """Bytes of KV, and of embeddings, that all instances have pulled from others."""
    counters = [snapshot.counters for snapshot in cluster.snapshots()]
    return tuple(sum(found.get(f"{pool}_bytes_received", 0) for found in counters) for pool in ("kv", "media"))  # type: ignore[return-value]


def assert_nothing_held(cluster: LocalCluster) -> None:
    """No task, page of a running request, or staged byte is left on any instance. An answer may come before what it held is given back."""
    until = time.monotonic() + 60
    while held := [
        (snapshot.info.ref.id, name, snapshot.resources[name])
        for snapshot in cluster.snapshots()
        for name in ("tasks", "pages_sequence", "media_pages_held", "staging_bytes")
        if snapshot.resources.get(name)
    ]:
        assert time.monotonic() < until, held
        time.sleep(0.05)

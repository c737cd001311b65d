"""KV in codes with scales: a prefill and a decode instance of other sizes give a monolithic instance's tokens, by every transport.

Log-probabilities agree to a step of some codes only: what is computed in other chunks or on other meshes differs in the last bit before it is
rounded, and may then be rounded the other way.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.system import toy_media
from tests.system.deployment import SMALL, deployed
from tests.system.test_matrix import REQUESTS, run_one
from tests.system.toy import ToySetup, logprobs_of, shape_of
from triptych.models.config import PRESETS
from triptych.models.kv import CODE_BYTES, kv_groups
from triptych.runtime.client import Client, Result
from triptych.runtime.engine.compile_guard import no_compilation

pytestmark = pytest.mark.limit(400)

FAST = ("greedy", "one token prompt")
TINY: dict[str, Any] = {"max_num_seqs": 1, "max_model_len": 32, "chunk_tokens": 16, "num_pages": 9}
OFFER = 8 * 16  # tokens


def served(names: Any, **setup: Any) -> dict[str, Result]:
    """What one monolithic instance says to one request at a time."""
    with ToySetup("PD", prefix_cache=False, **setup).cluster() as cluster, Client(cluster.address) as client:
        return {name: run_one(client, name) for name in names}


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Result]]:
    """By KV dtype."""
    return {dtype: served(REQUESTS, chunk_tokens=64, kv_dtype=dtype) for dtype in CODE_BYTES}


def assert_same(result: Result, wanted: Result, where: str) -> None:
    assert shape_of(result) == shape_of(wanted), where
    assert logprobs_of(result) == pytest.approx(logprobs_of(wanted), abs=0.02), where


def test_pages_and_scales_travel_between_unequal_meshes() -> None:
    group = kv_groups(PRESETS["toy"], "int8")[0]
    wanted = served(FAST, kv_dtype="int8", **TINY)
    setup = ToySetup("1P1D", "two", "grpc", (1, 2), kv_dtype="int8", **TINY)
    with setup.cluster() as cluster, Client(cluster.address) as client, no_compilation():
        for name in FAST:
            result = run_one(client, name)
            assert_same(result, wanted[name], name)
            offers = -(-len(REQUESTS[name]["token_ids"]) // OFFER)
            assert result.timings is not None and result.timings.kv_bytes == offers * OFFER * group.bytes_per_token
    assert group.bytes_per_token == 2 * 2 * 4 * (16 + 4), "layers, keys and values, heads, codes and scale"


@pytest.mark.slow
@pytest.mark.parametrize(
    "setup",
    [
        ToySetup("1P1D", "one", "local", (4, 2), kv_layer_groups=1, kv_dtype="int8"),
        ToySetup("1P1D", "two", "device", (2, 1), chunk_tokens=16, kv_dtype="int8"),
        ToySetup("1P1D", "two", "device", (1, 4), kv_layer_groups=1, num_pages=21, kv_dtype="float8_e4m3fn"),
        ToySetup("1P1D", "two", "grpc", (2, 4), prefix_cache=False, kv_dtype="float8_e4m3fn"),
        ToySetup("(P-D)", tp=(2, 2), chunk_tokens=16, kv_dtype="int8"),
        ToySetup("PD", num_pages=16, chunk_tokens=16, kv_dtype="int8"),
    ],
    ids=lambda setup: f"{setup.topology}-{setup.transport}-{setup.tp}-{setup.kv_dtype}",
)
def test_every_transport_gives_the_monoliths_tokens(setup: ToySetup, expected: dict[str, dict[str, Result]]) -> None:
    """Cold, warm, and all at once, with preemptions where the pool is small."""
    wanted = expected[setup.kv_dtype]
    with setup.cluster() as cluster, Client(cluster.address) as client:
        for turn in ("cold", "warm"):
            for name, result in wanted.items():
                assert_same(run_one(client, name), result, f"{turn}: {name}")
        with ThreadPoolExecutor(2 * len(REQUESTS)) as threads:
            crowd = [(name, threads.submit(run_one, client, name, salt)) for salt in ("a", "b") for name in REQUESTS]
            for name, future in crowd:
                assert_same(future.result(), wanted[name], f"crowd: {name}")
        snapshots = cluster.snapshots()
    assert all(snapshot.resources["pages_sequence"] == 0 for snapshot in snapshots)
    if setup.num_pages < 100:
        assert sum(snapshot.counters["preemptions"] for snapshot in snapshots) > 0


@pytest.mark.slow
def test_answers_about_pictures_are_the_same_with_encode_apart() -> None:
    """Pictures travel in the model's dtype, KV in codes."""
    with toy_media.cluster_of("EPD", kv_dtype="int8") as cluster, Client(cluster.address) as client:
        wanted = {name: toy_media.run_one(client, name) for name in toy_media.REQUESTS}
    with (
        toy_media.cluster_of("1E1P1D", "grpc", (1, 2, 1), processes="each", kv_dtype="int8") as cluster,
        Client(cluster.address) as client,
    ):
        for name, result in wanted.items():
            assert_same(toy_media.run_one(client, name), result, name)


@pytest.mark.slow
def test_the_setting_reaches_processes_and_theirs_alone_may_join(expected: dict[str, dict[str, Result]]) -> None:
    flags = ("--topology=1P1D", "--prefill-tp=2", "--decode-tp=1", "--transport=device", "--kv-cache-dtype=fp8")
    with deployed(*flags) as server, Client(server.address) as client:
        for name, wanted in expected["float8_e4m3fn"].items():
            assert_same(run_one(client, name), wanted, name)
        for instance in server.cluster().instances:
            assert instance.info.compatibility.kv_dtype == "float8_e4m3fn"
        other = subprocess.run(
            [
                *(sys.executable, "-m", "triptych.tools.cli", "worker", *SMALL, "--topology=1P1D", "--kv-cache-dtype=int8"),
                *("--instances=decode-0", "--name=other", f"--scheduler={server.scheduler}"),
            ],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
    assert other.returncode != 0
    assert "kv_dtype: 'int8' != 'float8_e4m3fn'" in other.stdout + other.stderr

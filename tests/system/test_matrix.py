"""The same tokens everywhere: every pair of {topology, processes, transport, TP pair, chunk size, prefix cache, pool size, layers an offer} against the monolith.

Each row of the pairwise matrix is a cluster; on each, the same requests run cold, again (prefix cache warm), and all at once (mixed steps, and
preemption where the pool is small). What comes back must be what one monolithic instance gives to one request at a time: tokens, text, finish
reasons, usage to the letter, log-probabilities to rounding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.system.covering import Row, covering_rows
from tests.system.deployment import deployed
from tests.system.toy import ToySetup, logprobs_of, shape_of
from tests.system.toy_media import assert_nothing_held, received
from triptych.runtime.client import Client, Result
from triptych.runtime.cluster.local import LocalCluster
from triptych.runtime.engine.compile_guard import no_compilation

FACTORS: dict[str, list[Any]] = {
    "topology": ["PD", "1P1D", "(P-D)"],
    "processes": ["one", "two"],
    "transport": ["local", "device", "grpc"],
    "tp": [(1, 1), (1, 2), (2, 1), (2, 4), (4, 2), (4, 1)],
    "chunk_tokens": [16, 64],
    "prefix_cache": [True, False],
    "num_pages": [129, 21],
    "kv_layer_groups": [1, None],  # the toy has two layers
}


def possible(row: Row) -> bool:
    """PD and (P-D) move nothing and have one TP size; `local` stays inside a process."""
    if row["topology"] != "1P1D":
        alone = row["processes"] == "one" and row["transport"] == "local" and row["kv_layer_groups"] is None
        return alone and row["tp"] in ((1, 1), (2, 1))
    return not (row["processes"] == "two" and row["transport"] == "local")


ROWS = covering_rows(FACTORS, possible)
# In the fast run: the first row of each topology in one worker, by layer groups where KV moves. Two workers, over transport `device`, with TP sizes that differ and a small pool, are in
# test_two_processes_give_the_monoliths_tokens, in processes of their own. The other rows run in `make test-all`.
FAST = [
    next(
        row
        for row in ROWS
        if (row["topology"], row["processes"]) == (topology, "one") and (topology != "1P1D" or row["kv_layer_groups"])
    )
    for topology in FACTORS["topology"]
]


def _prompt(length: int, seed: int) -> list[int]:
    return [random.Random(f"{seed}/{i}").randrange(256) for i in range(length)]


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"token_ids": _prompt(17, 1), "max_tokens": 12, "temperature": 0, "logprobs": 2},
    "one token prompt": {
        "token_ids": _prompt(1, 2),
        "max_tokens": 20,
        "temperature": 0,
        "min_tokens": 5,
        "stop": ["a", "bc"],
    },
    "several chunks, prompt scored": {
        "token_ids": _prompt(70, 3),
        "max_tokens": 8,
        "temperature": 0,
        "prompt_logprobs": 1,
    },
    "whole pages, seeded": {
        "token_ids": _prompt(48, 4),
        "max_tokens": 12,
        "temperature": 0.9,
        "top_p": 0.9,
        "seed": 7,
        "logprobs": 0,
    },
    "three samples": {
        "token_ids": _prompt(33, 5),
        "max_tokens": 10,
        "temperature": 1.0,
        "top_k": 20,
        "min_p": 0.02,
        "seed": 2**63,
        "n": 3,
    },
    "penalised": {
        "token_ids": _prompt(20, 6),
        "max_tokens": 16,
        "temperature": 0,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.4,
        "logit_bias": {5: 3.0, 9: -100.0},
    },
    "penalised and seeded": {
        "token_ids": _prompt(31, 7),
        "max_tokens": 12,
        "temperature": 0.8,
        "seed": 3,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.7,
        "n": 2,
    },
    "one token": {"token_ids": _prompt(18, 8), "max_tokens": 1, "temperature": 0},
    "long": {"token_ids": _prompt(16, 9), "max_tokens": 60, "temperature": 1.0, "seed": 11, "ignore_eos": True},
    "longer": {"token_ids": _prompt(40, 10), "max_tokens": 70, "temperature": 0, "ignore_eos": True},
}


def run_one(client: Client, name: str, salt: str = "") -> Result:
    return client.complete(**REQUESTS[name], cache_salt=salt, timeout=120)


@pytest.fixture(scope="module")
def expected() -> dict[str, Result]:
    """One monolithic instance, no prefix cache, one request at a time."""
    with ToySetup("PD", prefix_cache=False, chunk_tokens=64).cluster() as cluster, Client(cluster.address) as client:
        return {name: run_one(client, name) for name in REQUESTS}


@pytest.fixture(
    scope="module",
    params=[row if row in FAST else pytest.param(row, marks=pytest.mark.slow) for row in ROWS],
    ids=lambda row: "-".join(str(value).replace(" ", "") for value in row.values()),
)
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[Row, LocalCluster, Client]]:
    row = request.param
    setup = dict(row)
    if row["topology"] != "1P1D":
        setup["tp"] = (row["tp"][0], row["tp"][0])
    with ToySetup(**setup).cluster() as running, Client(running.address) as client:
        yield row, running, client


def assert_same(result: Result, wanted: Result, where: str) -> None:
    assert shape_of(result) == shape_of(wanted), where
    assert logprobs_of(result) == pytest.approx(logprobs_of(wanted), abs=2e-4), where


@pytest.mark.limit(900)
def test_every_configuration_gives_the_monoliths_tokens(
    cluster: tuple[Row, LocalCluster, Client], expected: dict[str, Result]
) -> None:
    row, running, client = cluster
    with no_compilation():
        for turn in ("cold", "warm"):
            for name, wanted in expected.items():
                before = received(running)
                result = run_one(client, name)
                assert_same(result, wanted, f"{turn}: {name}")
                if row["topology"] == "1P1D" and REQUESTS[name]["max_tokens"] > 1 and turn == "cold":
                    assert received(running) > before, f"{name}: no KV moved"
        with ThreadPoolExecutor(2 * len(REQUESTS)) as threads:
            crowd = [(name, threads.submit(run_one, client, name, salt)) for salt in ("a", "b") for name in REQUESTS]
            for name, future in crowd:
                assert_same(future.result(), expected[name], f"crowd: {name}")
    assert_nothing_held(running)


@pytest.mark.limit(400)
@pytest.mark.parametrize("transport", ["device", pytest.param("grpc", marks=pytest.mark.slow)])
def test_two_processes_give_the_monoliths_tokens(transport: str, expected: dict[str, Result]) -> None:
    flags = ("--topology=1P1D", "--prefill-tp=2", "--decode-tp=4", f"--transport={transport}", "--num-pages=33")
    with deployed(*flags) as server, Client(server.address) as client:
        for turn in ("cold", "warm"):
            for name, wanted in expected.items():
                assert_same(run_one(client, name), wanted, f"{turn}: {name}")
        with ThreadPoolExecutor(2 * len(REQUESTS)) as threads:
            crowd = [(name, threads.submit(run_one, client, name, salt)) for salt in ("a", "b") for name in REQUESTS]
            for name, future in crowd:
                assert_same(future.result(), expected[name], f"crowd: {name}")
        states = server.wait_idle()
    assert states["decode-0"].counters["kv_bytes_received"] > 0
    assert all(state.counters["compiled_after_ready"] == 0 for state in states.values())


@pytest.mark.limit(400)
def test_preemption_changes_no_token(expected: dict[str, Result]) -> None:
    """A pool for two of the six sequences at a time: some must be preempted, and all must come out the same."""
    with (
        ToySetup("PD", num_pages=16).cluster() as running,
        Client(running.address) as client,
    ):
        names = ("longer", "long", "longer", "long", "longer", "long")
        for turn in range(5):  # they might not meet
            with ThreadPoolExecutor(len(names)) as threads:
                futures = [threads.submit(run_one, client, name, f"salt {turn}/{i}") for i, name in enumerate(names)]
                for name, future in zip(names, futures, strict=True):
                    assert_same(future.result(), expected[name], name)
            (snapshot,) = running.snapshots()
            if snapshot.counters["preemptions"]:
                break
    assert snapshot.counters["preemptions"] > 0

"""Deployments that guess give the tokens of the monolith that does not, together and alone, and say how often they were right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.system.toy import ToySetup, shape_of
from triptych.runtime.client import Client, Result
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.instance.speculation import Speculation

pytestmark = [pytest.mark.slow, pytest.mark.limit(600)]

PHRASE = [7, 8, 9, 10, 11, 12, 13, 14]
REQUESTS: list[dict[str, Any]] = [
    {"token_ids": PHRASE * 4, "temperature": 0, "max_tokens": 60},
    {"token_ids": PHRASE * 2, "temperature": 0, "max_tokens": 23},
    {"token_ids": PHRASE * 3, "temperature": 0.3, "seed": 4, "max_tokens": 40, "n": 3},
    {"token_ids": PHRASE * 3, "temperature": 0.5, "top_k": 5, "seed": 4, "max_tokens": 40, "logprobs": 2},
    {"token_ids": PHRASE * 2, "temperature": 0, "max_tokens": 40, "stop_token_ids": list(range(0, 256, 20))},
    {"token_ids": PHRASE * 2, "temperature": 0, "max_tokens": 20, "frequency_penalty": 0.5},
]
REQUESTS = [request if "stop_token_ids" in request else request | {"ignore_eos": True} for request in REQUESTS]


def serve(setup: ToySetup) -> tuple[list[Result], list[Result], dict[str, int]]:
    """(results one by one, results of all at once, summed counters)."""
    with setup.cluster() as cluster, Client(cluster.address) as client, no_compilation():
        alone = [client.complete(**request) for request in REQUESTS]
        with ThreadPoolExecutor(len(REQUESTS)) as pool:
            together = list(pool.map(lambda request: client.complete(**request), REQUESTS))
        counters = [snapshot.counters for snapshot in cluster.snapshots()]
    return alone, together, {name: sum(each[name] for each in counters) for name in counters[0]}


@pytest.fixture(scope="module")
def expected() -> list[Result]:
    alone, _, counters = serve(ToySetup("PD"))
    assert counters["tokens_drafted"] == 0
    return alone


@pytest.mark.parametrize(
    ("topology", "tp", "num_pages", "model"),
    [
        ("PD", (1, 1), 21, "dummy:toy"),
        ("1P1D", (1, 2), 129, "dummy:toy"),
        ("1P1D", (1, 1), 21, "dummy:toy-draft"),
    ],
)
def test_with_a_draft_model_too(
    expected: list[Result], topology: str, tp: tuple[int, int], num_pages: int, model: str
) -> None:
    """Prefix cache on, pulled KV that the draft model has to read first, pools that preempt, steps with prompts by layer groups."""
    groups = 1 if topology == "PD" else None
    setup = ToySetup(
        topology, tp=tp, num_pages=num_pages, kv_layer_groups=groups, speculation=Speculation(4, model=model)
    )
    for results in (served := serve(setup))[:2]:
        assert [shape_of(result) for result in results] == [shape_of(result) for result in expected]
    counters = served[2]
    assert counters["tokens_drafted"] > 0 == counters["compiled_after_ready"]
    if model == "dummy:toy":  # the target itself: what is wrong lies behind a stop
        assert counters["tokens_accepted"] > 0.9 * counters["tokens_drafted"]


@pytest.mark.parametrize("topology", ["PD", "(P-D)", "1P1D"])
@pytest.mark.parametrize("num_pages", [129, 21])
def test_tokens_are_those_of_the_monolith(expected: list[Result], topology: str, num_pages: int) -> None:
    setup = ToySetup(topology, num_pages=num_pages, speculation=Speculation(4))
    for results in (served := serve(setup))[:2]:
        assert [shape_of(result) for result in results] == [shape_of(result) for result in expected]
    counters = served[2]
    assert 0 < counters["tokens_accepted"] < counters["tokens_drafted"]

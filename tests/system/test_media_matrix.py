"""The same tokens with pictures, everywhere: every pair of {topology, processes, transport, TP sizes, chunk size, prefix cache, media pool, order}.

Each row of the pairwise matrix is a cluster. On it the same questions are asked cold, again (prefix cache and embeddings warm), and all at
once. What comes back must be what one instance with all roles gives to one request at a time: tokens, text, finish reasons, usage to the
letter, log-probabilities to rounding.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.system.covering import Row, covering_rows
from tests.system.toy import logprobs_of, shape_of
from tests.system.toy_media import (
    A_THEN_B,
    B_THEN_A,
    PICTURES,
    REQUESTS,
    assert_nothing_held,
    cluster_of,
    encoded,
    received,
    run_one,
)
from triptych.runtime.client import Client, Result
from triptych.runtime.engine.compile_guard import no_compilation

pytestmark = pytest.mark.limit(600)

SMALL, LARGE = 5, 41  # pages of a media pool: room for four pictures of six, and for all that can be in use
FACTORS: dict[str, list[Any]] = {
    "topology": ["EPD", "1E1P1D", "(E-P)-D", "EP-D", "E-PD", "2E1P1D"],
    "processes": ["one", "each"],
    "transport": ["local", "device", "grpc"],
    "tp": [(1, 1, 1), (1, 2, 1), (2, 1, 2), (1, 1, 2), (2, 2, 1), (1, 2, 2)],
    "chunk_tokens": [16, 64],  # the smaller one cuts every picture that does not begin a page
    "prefix_cache": [True, False],
    "media_pages": [LARGE, SMALL],
    "turned": [False, True],  # the questions, and with them the two orders of the same pictures, in the other order
}


APART = ("1E1P1D", "E-PD", "2E1P1D")  # the topologies in which embeddings move


def possible(row: Row) -> bool:
    """Stages on one instance have one TP size; EPD moves nothing; `local` stays inside a process."""
    encode, prefill, decode = row["tp"]
    shared = {"EPD": encode == prefill == decode, "E-PD": prefill == decode}
    if not shared.get(row["topology"], encode == prefill or "E1P" in row["topology"]):
        return False
    if row["topology"] == "EPD":
        return row["processes"] == "one" and row["transport"] == "local"
    return not (row["processes"] == "each" and row["transport"] == "local")


# In the fast run: three stages apart, cut pictures and a pool that evicts, all over the transport that always works.
FIRST: Row = {
    "topology": "1E1P1D",
    "processes": "each",
    "transport": "grpc",
    "tp": (1, 2, 1),
    "chunk_tokens": 16,
    "prefix_cache": True,
    "media_pages": SMALL,
    "turned": False,
}
OTHERS = [row for row in covering_rows(FACTORS, possible) if row != FIRST]


@pytest.fixture(scope="module")
def expected() -> dict[str, Result]:
    """One monolithic instance, no prefix cache, one request at a time."""
    with cluster_of("EPD", prefix_cache=False, chunk_tokens=64) as cluster, Client(cluster.address) as client:
        return {name: run_one(client, name) for name in REQUESTS}


def assert_same(result: Result, wanted: Result, what: str) -> None:
    assert shape_of(result) == shape_of(wanted), what
    assert result.usage is not None and wanted.usage is not None
    assert result.usage.media_tokens == wanted.usage.media_tokens, what
    assert logprobs_of(result) == pytest.approx(logprobs_of(wanted), abs=2e-4), what


def test_the_model_looks(expected: dict[str, Result]) -> None:
    """What the other tests rest on: the same pictures in another order give other numbers."""
    assert shape_of(expected[A_THEN_B])["usage"][0] == shape_of(expected[B_THEN_A])["usage"][0]
    assert logprobs_of(expected[A_THEN_B]) != pytest.approx(logprobs_of(expected[B_THEN_A]), abs=2e-3)


@pytest.mark.parametrize(
    "row",
    [FIRST, *(pytest.param(row, marks=pytest.mark.slow) for row in OTHERS)],
    ids=lambda row: "-".join(str(value).replace(" ", "") for value in row.values()),
)
def test_every_configuration_gives_the_monoliths_tokens(row: Row, expected: dict[str, Result]) -> None:
    """Nothing compiles meanwhile, and nothing is held afterwards."""
    names = list(REQUESTS)[::-1] if row["turned"] else list(REQUESTS)
    settings = {key: value for key, value in row.items() if key != "turned"}
    with cluster_of(**settings) as cluster, Client(cluster.address) as client:
        with no_compilation():
            first = 0  # bytes of embeddings that the cold round moved
            for turn in ("cold", "warm"):
                for name in names:
                    before = received(cluster)
                    result = run_one(client, name)
                    assert_same(result, expected[name], f"{turn}: {name}")
                    if turn == "cold":
                        kv, media = (now - then for now, then in zip(received(cluster), before, strict=True))
                        assert (kv > 0) == (row["topology"] not in ("EPD", "E-PD")), name
                        assert media == 0 or row["topology"] in APART, name
                        first += media
            assert (first > 0) == (row["topology"] in APART)
            assert_evicted_where_it_must(row, sum(encoded(cluster).values()), received(cluster)[1] - first)
            with ThreadPoolExecutor(2 * len(names)) as threads:
                crowd = [(name, threads.submit(run_one, client, name, salt)) for salt in ("a", "b") for name in names]
                for name, future in crowd:
                    assert_same(future.result(), expected[name], f"crowd: {name}")
        assert_nothing_held(cluster)


def assert_evicted_where_it_must(row: Row, times: int, again: int) -> None:
    """Two rounds of questions about six pictures: large pools keep all of them; small ones encode some again, or move them again (`again` bytes)."""
    if row["media_pages"] == LARGE:
        assert (times, again) == (PICTURES, 0)
    elif not row["prefix_cache"]:
        assert times > PICTURES or again > 0

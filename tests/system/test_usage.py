"""Usage is exact, whatever ended a request and wherever its prompt came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.toy import ToySetup
from triptych.runtime.client import Client, Result

PROMPT = list(range(40, 90))  # 50 tokens: three full pages of 16 and two more tokens


@pytest.fixture(scope="module", params=["PD", "1P1D"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with ToySetup(request.param, max_num_seqs=4).cluster() as cluster, Client(cluster.address) as running:
        yield running


def run(client: Client, **arguments: Any) -> Result:
    return client.complete(**{"token_ids": PROMPT, "temperature": 0, "timeout": 120} | arguments)


def usage(result: Result) -> tuple[int, int, int]:
    assert result.usage is not None
    return result.usage.prompt_tokens, result.usage.cached_tokens, result.usage.completion_tokens


@pytest.mark.limit(300)
def test_a_cold_prompt_is_computed_and_a_repeated_one_cached_by_whole_pages(client: Client) -> None:
    assert usage(run(client, max_tokens=5, cache_salt="cold")) == (50, 0, 5)
    assert usage(run(client, max_tokens=5, cache_salt="cold")) == (50, 48, 5)


def test_a_prompt_of_whole_pages_keeps_one_page_to_compute(client: Client) -> None:
    exact = PROMPT[:48]
    assert usage(run(client, token_ids=exact, max_tokens=3, cache_salt="exact")) == (48, 0, 3)
    assert usage(run(client, token_ids=exact, max_tokens=3, cache_salt="exact")) == (48, 32, 3)


def test_salts_do_not_share(client: Client) -> None:
    run(client, max_tokens=2, cache_salt="mine")
    assert usage(run(client, max_tokens=2, cache_salt="yours")) == (50, 0, 2)


def test_one_token_is_one_token(client: Client) -> None:
    result = run(client, max_tokens=1)
    assert usage(result)[2] == 1 and len(result.samples[0].tokens) == 1
    assert result.samples[0].finish_reason == "length"


def test_every_sample_counts(client: Client) -> None:
    result = run(client, max_tokens=4, n=3, temperature=1, seed=1, ignore_eos=True)
    assert usage(result)[2] == 12 == sum(len(sample.tokens) for sample in result.samples)


def test_a_stop_string_over_several_tokens_ends_the_text_before_it_and_counts_its_tokens(client: Client) -> None:
    text = run(client, max_tokens=30, ignore_eos=True).text
    ascii_at = next(
        i for i in range(2, len(text) - 3) if text[i : i + 3].isascii() and text.index(text[i : i + 3]) == i
    )
    stop = text[ascii_at : ascii_at + 3]
    result = run(client, max_tokens=30, ignore_eos=True, stop=[stop])
    sample = result.samples[0]
    assert (sample.text, sample.finish_reason, sample.matched) == (text[:ascii_at], "stop", stop)
    assert usage(result)[2] == len(sample.tokens) >= ascii_at + 3


def test_output_may_be_empty(client: Client) -> None:
    first = run(client, max_tokens=1).samples[0].token_ids[0]
    result = run(client, max_tokens=9, stop_token_ids=[first])
    sample = result.samples[0]
    assert (sample.text, sample.finish_reason, sample.matched) == ("", "stop", first)
    assert usage(result) == (50, usage(result)[1], 1)


def test_the_context_ends_a_generation_that_names_no_limit(client: Client) -> None:
    result = run(client, ignore_eos=True)
    assert usage(result)[2] == 160 - 50
    assert result.samples[0].finish_reason == "length"

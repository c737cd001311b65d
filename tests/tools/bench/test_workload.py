"""Load: arrival times, prompts and traces, all repeatable from a seed."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from triptych.tools.bench.workload import (
    BUNDLED_TRACE,
    WorkloadError,
    poisson,
    random_items,
    read_trace,
    text_items,
    trace_items,
    uniform,
)


def test_uniform_arrivals_are_equally_spaced():
    assert uniform(4, 2.0) == [0.0, 0.5, 1.0, 1.5]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_exponential_gaps():
    times = poisson(20_000, 5.0, random.Random(0))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((g - mean) ** 2 for g in gaps) / len(gaps))
    assert times[0] == 0.0
    assert mean == pytest.approx(0.2, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05)
    assert times == poisson(20_000, 5.0, random.Random(0))


def test_an_infinite_rate_sends_everything_at_once():
    assert poisson(3, math.inf, random.Random(0)) == uniform(3, math.inf) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float):
    with pytest.raises(WorkloadError, match="rate"):
        uniform(1, rate)


def test_random_prompts_have_the_length_and_come_from_the_vocabulary():
    items = random_items([0.0, 1.0], input_tokens=50, output_tokens=7, vocab=range(5, 9), rng=random.Random(1))
    assert all(
        len(i.prompt) == 50 and set(i.prompt) <= {5, 6, 7, 8} and i.output_tokens == 7 and i.ignore_eos for i in items
    )
    assert items[0].prompt != items[1].prompt


def test_texts_are_used_in_turn_and_may_end_early():
    items = text_items([0.0, 0.1, 0.2], ["a", "b"], output_tokens=9)
    assert [i.prompt for i in items] == ["a", "b", "a"]
    assert not any(i.ignore_eos for i in items)


def test_the_bundled_trace_is_readable():
    rows = read_trace(BUNDLED_TRACE.read_text().splitlines())
    assert len(rows) == 300
    assert (rows[0].at, rows[0].input_tokens, rows[0].output_tokens) == (0.0, 374, 44)
    assert rows[1].at == pytest.approx(4.314579)
    assert all(a.at <= b.at for a, b in itertools.pairwise(rows))


def test_a_trace_is_scaled_in_time_and_length_and_cut_to_the_context():
    rows = read_trace(
        [
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:00:00,100,40",
            "2023-11-16 18:00:10.5000000,1000,400",
        ]
    )
    items = trace_items(rows, speed=2.0, length_scale=0.1, max_total=120, vocab=range(10), rng=random.Random(0))
    assert [(i.at, len(i.prompt), i.output_tokens) for i in items] == [(0.0, 10, 4), (5.25, 100, 20)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a,b", "1,2"], "lacks the columns TIMESTAMP"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens"], "no rows"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:00:00,many,4"], "line 2 cannot be read"),
        (
            ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:00:00,1,4", "yesterday,1,1"],
            "line 3 cannot be read",
        ),
    ],
)
def test_a_trace_that_cannot_be_read_says_where(lines: list[str], words: str):
    with pytest.raises(WorkloadError, match=words):
        read_trace(lines)

"""The search finds the goodput of a deployment that has one, in few points, and says what it does not know."""

from __future__ import annotations

import pytest

from triptych.tools.bench.sweep.search import LEAST, MOST, Bracket, Tried, bracket, ended, next_step, rate_of, step_of


def search(goodput: float, start: int = 0, late: float = float("inf"), base: float = 1.0) -> list[Tried]:
    """All points of a search on a deployment that passes up to `goodput`, with a generator that is late from `late` on."""
    tried: list[Tried] = []
    while (step := next_step(tried, start)) is not None:
        rate = rate_of(base, step)
        tried.append(Tried(step, None if rate >= late else 1.0 if rate <= goodput else 0.5))
        assert len(tried) < 60
    return tried


@pytest.mark.parametrize("goodput", [0.1, 0.3, 1.0, 1.05, 7.3, 8.0, 100.0, 1500.0])
@pytest.mark.parametrize("start", [0, 5, 24])
def test_goodput_is_bracketed_within_ten_percent(goodput: float, start: int):
    tried = search(goodput, start)
    found = bracket(tried)
    assert found.closed and found.low is not None and found.high is not None
    assert rate_of(1.0, found.low) <= goodput < rate_of(1.0, found.high)
    assert rate_of(1.0, found.high) / rate_of(1.0, found.low) < 1.1
    assert len({one.step for one in tried}) == len(tried), "no rate is measured twice"
    assert ended(tried) == "bracketed"


def test_a_search_that_begins_at_the_answer_takes_five_points():
    """The answer, twice it, and three halvings of the octave between them."""
    assert [one.step for one in search(rate_of(1.0, 13), start=13)] == [13, 21, 17, 15, 14]


def test_searches_from_one_base_meet_at_the_same_rates():
    one, other = ({rate_of(0.7, t.step) for t in search(g, base=0.7)} for g in (5.0, 6.0))
    assert len(one & other) >= 4


def test_a_rate_says_its_step():
    assert [step_of(0.7, rate_of(0.7, step)) for step in range(-20, 50)] == list(range(-20, 50))


def test_what_always_passes_or_never_does_ends():
    always, never = search(float("inf")), search(0.0)
    assert always[-1].step <= MOST and ended(always) == "no rate failed"
    assert never[-1].step >= LEAST and ended(never) == "no rate passed"
    assert bracket(never) == Bracket(None, min(t.step for t in never))


def test_a_late_generator_is_asked_once_more_and_then_is_a_limit():
    tried = search(goodput=100.0, late=10.0)
    found = bracket(tried)
    assert found.high is None and found.limit is not None and found.low is not None
    assert found.limit - found.low == 1 and rate_of(1.0, found.low) < 10.0 <= rate_of(1.0, found.limit)
    assert not found.closed and ended(tried) == "the load generator is too slow for more"


def test_a_hiccup_of_the_generator_is_forgotten():
    tried = [Tried(0, 1.0), Tried(8, None)]
    assert next_step(tried) == 8
    assert next_step([*tried, Tried(8, 0.95)]) == 16
    assert bracket([*tried, Tried(8, 0.95)]) == Bracket(8, None)


def test_a_rate_that_passes_beyond_one_that_fails_does_not_count():
    tried = [Tried(0, 1.0), Tried(8, 0.8), Tried(16, 0.95)]
    assert bracket(tried) == Bracket(0, 8) and next_step(tried) == 4

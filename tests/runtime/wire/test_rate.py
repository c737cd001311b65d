"""Token buckets: bursts, refilling, one client's calls never cost another's, and a bounded table."""

from __future__ import annotations

import pytest

from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.wire.rate import Rate, RateLimitedError, RateLimiter


def admitted(limiter: RateLimiter, client: str, now: float) -> bool:
    try:
        limiter.admit(client, now)
    except RateLimitedError:
        return False
    return True


def test_a_burst_passes_and_then_calls_come_at_the_rate() -> None:
    limiter = RateLimiter(Rate(per_second=2.0, burst=3))
    assert [admitted(limiter, "a", 10.0) for _ in range(4)] == [True, True, True, False]
    assert not admitted(limiter, "a", 10.4)
    assert admitted(limiter, "a", 10.5)
    assert not admitted(limiter, "a", 10.5)
    assert sum(admitted(limiter, "a", 20.0 + i / 100) for i in range(1000)) == 3 + 19  # 9.99 seconds at 2 a second


def test_the_hint_is_when_the_next_call_passes() -> None:
    limiter = RateLimiter(Rate(per_second=0.5, burst=1))
    limiter.admit("a", 0.0)
    with pytest.raises(RateLimitedError) as refused:
        limiter.admit("a", 0.5)
    hint = refused.value.retry_after
    assert refused.value.status is Status.RESOURCE_EXHAUSTED and hint == pytest.approx(1.5)
    assert hint is not None and admitted(limiter, "a", 0.5 + hint)


def test_clients_do_not_pay_for_each_other_and_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    limiter = RateLimiter(Rate(per_second=1.0, burst=1))
    assert admitted(limiter, "a", 5.0) and admitted(limiter, "b", 5.0)
    assert [admitted(limiter, "a", now) for now in (5.0, 4.0, 5.0)] == [False] * 3


def test_the_table_stays_bounded_and_forgets_who_was_away_longest() -> None:
    limiter = RateLimiter(Rate(per_second=1.0, burst=1), max_clients=3)
    for i in range(100):
        assert admitted(limiter, f"client {i}", 0.0)
        assert len(limiter) <= 3
    assert [admitted(limiter, f"client {i}", 0.0) for i in (99, 98, 97)] == [False] * 3


@pytest.mark.parametrize(("per_second", "burst"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (float("inf"), 1), (1.0, 0)])
def test_a_rate_that_lets_nobody_in_is_refused(per_second: float, burst: int) -> None:
    with pytest.raises(ConfigError, match="lets nobody in"):
        Rate(per_second, burst)

"""Each position exactly once and in order, whatever order, copies and attempts the tokens come in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.runtime.core.journal import Journal
from triptych.runtime.core.request import Finish, FinishReason, SampleState, TokenOut

STOP = Finish(FinishReason.STOP)
PROMPT = 3


def line(sample: int, length: int, attempt: int = 1) -> list[TokenOut]:
    return [
        TokenOut("r", attempt, sample, PROMPT + i, 100 * sample + i, None, STOP if i == length - 1 else None)
        for i in range(length)
    ]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    copies=st.integers(1, 3),
    stale=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_any_arrival_order_releases_the_same_lines(lengths: list[int], copies: int, stale: int, seed: int):
    journal = Journal(PROMPT, len(lengths), 1000)
    expected = {sample: line(sample, length) for sample, length in enumerate(lengths)}
    arrivals = [token for tokens in expected.values() for token in tokens] * copies
    arrivals += [TokenOut("r", 0, 0, PROMPT, 5)] * stale
    random.Random(seed).shuffle(arrivals)
    released: dict[int, list[TokenOut]] = {sample: [] for sample in expected}
    for token in arrivals:
        assert journal.finished == all(tokens and tokens[-1].finish for tokens in released.values())
        for out in journal.push(token):
            released[out.sample].append(out)
    assert released == expected
    assert journal.finished and not journal.gapped
    assert journal.counts.duplicates + journal.counts.foreign == (copies - 1) * sum(lengths)
    assert journal.counts.stale == stale


def test_tokens_outside_the_request_are_foreign():
    journal = Journal(PROMPT, 2, 10)
    for sample, position in ((2, PROMPT), (0, PROMPT - 1), (0, 10)):
        assert not journal.push(TokenOut("r", 1, sample, position, 1))
    assert journal.counts.foreign == 3


def test_nothing_follows_a_finish():
    journal = Journal(PROMPT, 1, 10)
    journal.push(TokenOut("r", 1, 0, PROMPT + 1, 2))
    journal.push(TokenOut("r", 1, 0, PROMPT, 1, None, STOP))
    assert journal.finished and not journal.gapped
    assert not journal.push(TokenOut("r", 1, 0, PROMPT + 2, 3))
    assert journal.counts.foreign == 2


def test_a_later_attempt_goes_on_from_what_was_released():
    journal = Journal(PROMPT, 2, 100)
    first, second = line(0, 5), line(1, 2)
    for token in (*first[:2], first[3], *second):
        journal.push(token)
    assert journal.gapped
    assert journal.resume(2) == (SampleState(0, (0, 1)), SampleState(1, (100, 101), STOP))
    assert not journal.gapped
    assert not journal.push(first[2])
    assert journal.counts.stale == 1
    again = line(0, 5, attempt=2)
    assert [t.position for token in again for t in journal.push(token)] == [PROMPT + 2, PROMPT + 3, PROMPT + 4]
    assert journal.finished
    with pytest.raises(ValueError, match="does not follow"):
        journal.resume(2)


def test_a_sample_closed_here_takes_no_more_and_forgets_what_lay_behind():
    journal = Journal(PROMPT, 1, 100)
    tokens = line(0, 5)
    journal.push(tokens[1])
    assert len(journal.push(tokens[0])) == 2
    journal.push(tokens[4])
    journal.close_sample(0, PROMPT, Finish(FinishReason.STOP, "x"))
    assert journal.finished and not journal.gapped
    assert not journal.push(tokens[2])
    assert journal.resume(2) == (SampleState(0, (0,), Finish(FinishReason.STOP, "x")),)

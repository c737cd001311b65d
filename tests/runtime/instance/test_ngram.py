"""Prompt look-up finds the latest occurrence of the longest match, however the sequence came about."""

from __future__ import annotations

import random

import pytest

from triptych.runtime.instance.ngram import NgramDrafter


def looked_up(tokens: list[int], count: int, longest: int, shortest: int) -> list[int]:
    """The same by reading the whole sequence."""
    for length in range(longest, shortest - 1, -1):
        for at in range(len(tokens) - 1, length - 1, -1):
            if tokens[at - length : at] == tokens[-length:]:
                known = list(tokens)
                for step in range(count):
                    known.append(known[at + step])
                return known[len(tokens) :]
    return []


def proposed(drafter: NgramDrafter, tokens: list[int], count: int) -> list[int]:
    drafter.learn(tokens, len(tokens))
    return drafter.propose(tokens, count)


@pytest.mark.parametrize(("longest", "shortest"), [(1, 1), (3, 1), (4, 2), (5, 5)])
def test_it_proposes_what_a_search_of_the_whole_sequence_finds(longest: int, shortest: int) -> None:
    rng = random.Random(longest * 10 + shortest)
    drafter, tokens = NgramDrafter(longest, shortest), []
    for _ in range(300):
        tokens += [rng.randint(0, 3) for _ in range(rng.randint(1, 3))]
        count = rng.randint(1, 6)
        assert proposed(drafter, tokens, count) == looked_up(tokens, count, longest, shortest)


def test_a_repeated_phrase_is_repeated_on() -> None:
    assert proposed(NgramDrafter(4, 2), [9, 1, 2, 3, 1, 2, 3, 1, 2], 7) == [3, 1, 2, 3, 1, 2, 3]


def test_nothing_is_proposed_without_a_match() -> None:
    assert proposed(NgramDrafter(4, 2), [1, 2, 3, 4, 2, 1], 3) == []
    assert proposed(NgramDrafter(4, 2), [1], 3) == []


def test_nothing_is_proposed_before_a_long_prompt_is_indexed() -> None:
    tokens, drafter = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2], NgramDrafter(2, 2)
    for learned in (4, 4):
        assert drafter.propose(tokens, 2) == [] and drafter.learn(tokens, 4) == learned
    assert drafter.propose(tokens, 2) == [] and drafter.learn(tokens, 4) == 2
    assert drafter.propose(tokens, 2) == [3, 4] and drafter.learn(tokens, 4) == 0

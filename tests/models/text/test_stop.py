"""Stop strings: whatever the cut into deltas, the emitted text is the whole text cut at the earliest, then longest,
match.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.models.text.stop import InvalidStopStringError, StopMatcher

# A tiny alphabet makes overlapping and self-overlapping stop strings common; one letter lies outside the BMP.
ALPHABET = "ab\n🙂"
TEXTS = st.text(ALPHABET, max_size=30)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)
CUTS = st.lists(st.integers(0, 30), max_size=12)


def brute_force(text: str, stops: list[str]) -> tuple[int, str] | None:
    for start in range(len(text)):
        here = [stop for stop in stops if text.startswith(stop, start)]
        if here:
            return start, max(here, key=len)
    return None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def run(matcher: StopMatcher, pieces: list[str]) -> tuple[str, str | None]:
    emitted = ""
    for piece in pieces:
        outcome = matcher.push(piece)
        emitted += outcome.text
        if outcome.matched is not None:
            return emitted, outcome.matched
    outcome = matcher.flush()
    return emitted + outcome.text, outcome.matched


@given(TEXTS, STOPS, CUTS)
def test_emitted_text_is_the_whole_text_cut_at_the_earliest_longest_stop(text: str, stops: list[str], cuts: list[int]):
    expected = brute_force(text, stops)
    emitted, matched = run(StopMatcher(stops), pieces_of(text, cuts))
    assert (emitted, matched) == ((text, None) if expected is None else (text[: expected[0]], expected[1]))


@given(TEXTS, STOPS, CUTS)
def test_keep_ends_after_the_stop_string(text: str, stops: list[str], cuts: list[int]):
    expected = brute_force(text, stops)
    emitted, matched = run(StopMatcher(stops, on_match="keep"), pieces_of(text, cuts))
    assert (emitted, matched) == ((text, None) if expected is None else (text[: end_of(expected)], expected[1]))


def end_of(match: tuple[int, str]) -> int:
    return match[0] + len(match[1])


@given(TEXTS, STOPS)
def test_text_is_held_only_while_it_could_begin_a_stop_string(text: str, stops: list[str]):
    matcher, emitted = StopMatcher(stops), ""
    for position, character in enumerate(text):
        outcome = matcher.push(character)
        emitted += outcome.text
        if outcome.matched is not None:
            return
        held = text[len(emitted) : position + 1]
        assert not held or any(stop.startswith(held) or held.startswith(stop) for stop in stops)


def test_a_match_waits_for_a_longer_one_at_the_same_start():
    matcher = StopMatcher(["\n", "\n\n"])
    assert matcher.push("a\n").text == "a"
    assert matcher.push("\nb").matched == "\n\n"


def test_nothing_comes_after_a_match():
    matcher = StopMatcher(["END"])
    assert matcher.push("one END two").text == "one "
    assert matcher.push("three") == matcher.flush() == matcher.push("END")
    assert matcher.flush().text == "" and matcher.flush().matched == "END"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidStopStringError, match="empty"):
        StopMatcher(["a", ""])

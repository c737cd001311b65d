"""Overlap from timestamps: what a run hides, and what a request waits for."""

from __future__ import annotations

import pytest

from triptych.tools.bench.intervals import Request, length, overlap, uncovered, union


def test_intervals_are_merged_and_measured() -> None:
    assert union([(4, 5), (0, 2), (1, 3), (5, 6), (7, 7)]) == [(0, 3), (4, 6)]
    assert length([(4, 5), (0, 2), (1, 3)]) == 4
    assert uncovered([(0, 10)], [(2, 3), (5, 20)]) == 4
    assert uncovered([(0, 1)], []) == 1
    assert uncovered([], [(0, 1)]) == 0


def test_one_prompt_hides_all_but_its_last_offer() -> None:
    found = overlap([Request(compute=((0.0, 4.0),), offers=((1, 2), (2, 3), (3, 4), (4, 5)))])
    assert (found.transfer, found.exposed_of_requests, found.exposed_in_run, found.late) == (4, 1, 1, 1)
    assert found.of_requests == found.in_run == 0.75


def test_the_next_prompt_hides_what_a_request_waits_for() -> None:
    """Two prompts without a gap; offers of all layers, each after its prompt."""
    first = Request(compute=((0.0, 2.0), (2.0, 4.0)), offers=((4, 5),))
    second = Request(compute=((4.0, 8.0),), offers=((8, 9),))
    found = overlap([first, second])
    assert (found.in_run, found.of_requests, found.late) == (0.5, 0.0, 1.0)
    assert found.compute == 8 and found.offers == 2


def test_offers_that_queue_up_make_a_request_late_by_more_than_its_own() -> None:
    first = Request(compute=((0.0, 1.0),), offers=((0.5, 3),))
    second = Request(compute=((1.0, 2.0),), offers=((3, 5),))
    found = overlap([first, second])
    assert first.late == 2 and second.late == 3 and found.late == 2.5
    assert found.exposed_of_requests == 4 and found.exposed_in_run == 3


def test_a_run_of_which_nothing_was_seen_has_no_overlap() -> None:
    for requests in ([], [Request((), ((0, 1),))], [Request(((0, 1),), ())]):
        with pytest.raises(ValueError, match="steps and offers"):
            overlap(requests)

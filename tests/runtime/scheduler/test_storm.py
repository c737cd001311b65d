"""Whatever instances, gateways, clients and the scheduler's own process do: every admitted request ends once, and nothing is held in the end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.scheduler.storm import Storm
from triptych.runtime.core.control import Failed
from triptych.runtime.core.errors import Status


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), severity=st.sampled_from([0.1, 0.5, 1.0]))
def test_every_request_ends_once_and_nothing_is_held_after_a_storm(seed: int, severity: float) -> None:
    storm = Storm(seed, severity)
    for _ in range(300):
        storm.step()
    storm.clear_up()
    storm.check()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), severity=st.sampled_from([0.1, 0.5, 1.0]))
def test_the_same_holds_of_requests_with_media_and_of_what_encodes_them(seed: int, severity: float) -> None:
    storm = Storm(seed, severity, media=True)
    for _ in range(300):
        storm.step()
    storm.clear_up()
    storm.check()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), media=st.booleans())
def test_when_nothing_goes_wrong_every_admitted_request_completes_or_never_fitted(seed: int, media: bool) -> None:
    storm = Storm(seed, severity=0.0, media=media)
    for _ in range(300):
        storm.step()
    storm.clear_up()
    storm.check()
    failures = [end for end in storm.ends.values() if isinstance(end, Failed)]
    assert {end.status for end in failures} <= {Status.INVALID_ARGUMENT, Status.RESOURCE_EXHAUSTED}
    counters = storm.world.scheduler.counters
    assert counters["completed"] == counters["admitted"] - counters["failed_invalid_argument"] > 0
    assert counters["interrupted"] == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), media=st.booleans())
def test_the_same_events_cause_the_same_commands(seed: int, media: bool) -> None:
    first, second = Storm(seed, 0.5, media), Storm(seed, 0.5, media)
    for _ in range(150):
        first.step()
        second.step()
    assert first.world.commands == second.world.commands
    assert first.world.notices == second.world.notices

"""Long audio in windows: nothing lost, nothing too long, cuts in pauses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.models.speech.windows import split_windows

RATE = 16_000


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200_000), st.integers(4_000, 60_000))
def test_windows_are_the_audio_in_order_but_for_a_rest_too_short_for_a_word(count: int, window: int) -> None:
    samples = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    parts = split_windows(samples, window)
    assert all(0 < part.size <= window for part in parts)
    joined = np.concatenate(parts)
    np.testing.assert_array_equal(joined, samples[: joined.size])
    assert samples.size - joined.size < RATE // 10


def test_a_cut_lies_in_the_pause_near_the_end_of_a_window() -> None:
    speech = np.random.default_rng(0).standard_normal(40 * RATE).astype(np.float32)
    speech[10 * RATE : 11 * RATE] = 0  # a better pause, but too early
    speech[27 * RATE : 28 * RATE] *= 0.01
    first, second = split_windows(speech, 30 * RATE)
    assert 27 * RATE < first.size < 28 * RATE and first.size + second.size == speech.size


def test_one_window_is_left_as_it_is() -> None:
    samples = np.ones(100, np.float32)
    (part,) = split_windows(samples, 100)
    assert part.size == 100


def test_silence_is_cut_as_late_as_allowed() -> None:
    first, _ = split_windows(np.zeros(50 * RATE, np.float32), 30 * RATE)
    assert 29.9 * RATE < first.size <= 30 * RATE


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((2, 100)), np.array([0.0, np.nan]), np.array([np.inf])])
def test_what_is_no_audio_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(ValueError, match="audio"):
        split_windows(samples, 100)

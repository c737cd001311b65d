"""M-RoPE positions beyond what the goldens hold: long videos, and what follows them."""

import numpy as np

from triptych.models.multimodal.mrope import MediaGrid, mrope_positions
from triptych.models.multimodal.prompt import MediaSpan


def test_text_goes_on_behind_the_largest_position_of_a_medium() -> None:
    """In time for a long video, by its larger side for a short one."""
    long, short = MediaGrid(5, 1, 2, 3.5), MediaGrid(2, 3, 2, 0.25)
    found = mrope_positions(28, (MediaSpan(2, 10), MediaSpan(13, 12)), (long, short))
    time = found.positions[0]
    assert time[2:12].tolist() == [2, 2, 5, 5, 9, 9, 12, 12, 16, 16], "whole positions, rounded down"
    assert found.positions[:, 12].tolist() == [17] * 3
    assert time[13:25].tolist() == [18] * 12, "two steps of a quarter of a position are in one"
    assert found.positions[:, 25].tolist() == [21] * 3
    assert found.offset == 24 - 28


def test_a_prompt_without_media_counts_its_tokens() -> None:
    found = mrope_positions(4, (), ())
    np.testing.assert_array_equal(found.positions, np.tile(np.arange(4), (3, 1)))
    assert found.offset == 0

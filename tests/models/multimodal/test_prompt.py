"""Placeholders become image tokens; M-RoPE positions follow. The goldens hold the reference library's for whole models."""

from dataclasses import replace

import numpy as np
import pytest

from triptych.models.errors import MediaShapeError, UnsupportedModelError
from triptych.models.multimodal.config import MediaMarkers
from triptych.models.multimodal.mrope import MediaGrid, media_grid, mrope_positions
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.multimodal.prompt import MarkerIds, MediaSpan, expand, marker_ids

PLAIN = MarkerIds((9,))
WRAPPED = MarkerIds((9,), before=7, after=8)


def test_placeholders_are_repeated_and_their_places_told() -> None:
    prompt = expand([1, 9, 2, 9], [3, 2], PLAIN)
    assert prompt.tokens.tolist() == [1, 9, 9, 9, 2, 9, 9]
    assert prompt.spans == (MediaSpan(1, 3), MediaSpan(5, 2))


def test_markers_are_added_only_where_they_are_missing() -> None:
    assert expand([9], [2], WRAPPED).tokens.tolist() == [7, 9, 9, 8]
    assert expand([1, 7, 9, 8, 2], [2], WRAPPED).tokens.tolist() == [1, 7, 9, 9, 8, 2]
    both = expand([9, 9], [1, 2], WRAPPED)
    assert both.tokens.tolist() == [7, 9, 8, 7, 9, 9, 8]
    assert both.spans == (MediaSpan(1, 1), MediaSpan(4, 2))


def test_a_prompt_without_media_stays_as_it_is() -> None:
    prompt = expand([1, 2, 3], [], WRAPPED)
    assert (prompt.tokens.tolist(), prompt.spans) == ([1, 2, 3], ())


@pytest.mark.parametrize(("tokens", "counts"), [([1, 9], []), ([1], [4]), ([9, 9], [4])])
def test_a_prompt_that_does_not_fit_its_media_is_refused(tokens: list[int], counts: list[int]) -> None:
    with pytest.raises(MediaShapeError, match=f"{tokens.count(9)} places for media, but {len(counts)} items"):
        expand(tokens, counts, PLAIN)


def test_an_item_without_rows_is_refused() -> None:
    with pytest.raises(MediaShapeError, match="at least one embedding row"):
        expand([9], [0], PLAIN)


def test_markers_are_found_in_the_vocabulary() -> None:
    vocabulary = {"<img>": 7, "</img>": 8}
    markers = MediaMarkers(9, "<c>", video_id=10, video="<v>", before="<img>", after="</img>")
    assert marker_ids(markers, vocabulary.get) == MarkerIds((9, 10), 7, 8)
    with pytest.raises(UnsupportedModelError, match="</img>"):
        marker_ids(markers, {"<img>": 7}.get)


def test_text_counts_all_three_positions_up_together() -> None:
    result = mrope_positions(4, [], [])
    assert result.positions.tolist() == [[0, 1, 2, 3]] * 3
    assert result.offset == 0


def test_an_image_has_rows_and_columns_and_text_goes_on_from_its_larger_side() -> None:
    result = mrope_positions(9, [MediaSpan(2, 6)], [MediaGrid(1, 2, 3)])
    assert result.positions[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5]
    assert result.positions[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5]
    assert result.positions[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5]
    assert result.offset == -3


def test_text_goes_on_after_the_last_step_of_a_long_video() -> None:
    result = mrope_positions(5, [MediaSpan(1, 3)], [MediaGrid(3, 1, 1, positions_per_step=2.5)])
    assert result.positions.tolist() == [[0, 1, 3, 6, 7], [0, 1, 1, 1, 7], [0, 1, 1, 1, 7]]
    assert result.offset == 3  # the next token stands at 8


def test_spans_must_fit_their_grids_and_the_prompt() -> None:
    with pytest.raises(MediaShapeError, match="does not have 5 tokens"):
        mrope_positions(9, [MediaSpan(2, 5)], [MediaGrid(1, 2, 3)])
    with pytest.raises(MediaShapeError, match="overlaps"):
        mrope_positions(9, [MediaSpan(4, 6)], [MediaGrid(1, 2, 3)])
    with pytest.raises(MediaShapeError, match="as many grids"):
        mrope_positions(9, [MediaSpan(4, 6)], [])
    assert np.asarray(mrope_positions(0, [], []).positions).shape == (3, 0)


def test_tiles_have_no_grid_of_three_positions() -> None:
    config = VLM_PRESETS["toy-vlm"]
    plan = config.plan(40, 30)
    assert media_grid(config, plan) == MediaGrid(1, 4, 4)
    with pytest.raises(MediaShapeError, match="has 2"):
        media_grid(config, replace(plan, grids=plan.grids * 2))

"""Which frames of a video are taken: those that the reference library takes."""

from dataclasses import replace

import pytest

from triptych.models.errors import MediaShapeError, UnsupportedModelError
from triptych.models.multimodal.hf_processing import video_from_hf
from triptych.models.multimodal.plans import DynamicProcessing, TileProcessing
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.multimodal.video import VideoProcessing, frame_count, frame_places

DEFAULT = VideoProcessing(DynamicProcessing())


@pytest.mark.parametrize(
    ("total", "rate", "places", "seconds_per_step"),
    # Of Qwen2VLVideoProcessor.sample_frames(fps=2) and Qwen2_5_VLProcessor in transformers 5.23.
    [
        (37, 10.0, (0, 6, 12, 18, 24, 30), 1.2333333333333332),
        (8, 10.0, (0, 2, 4, 6), 0.4),
        (100, 25.0, (0, 12, 25, 37, 50, 62, 75, 87), 1.0),
        (5, 2.0, (0, 1, 2, 3), 1.25),
        (3, 1.0, (0, 1), 3.0),
        (7, 24.0, (0, 1, 3, 5), 0.14583333333333334),
        (61, 7.0, (0, 3, 7, 11, 15, 19, 22, 26, 30, 34, 38, 41, 45, 49, 53, 57), 1.0892857142857142),
    ],
)
def test_frames_are_those_of_the_reference(
    total: int, rate: float, places: tuple[int, ...], seconds_per_step: float
) -> None:
    seconds = total / rate
    count = frame_count(DEFAULT, total, seconds, step=2)
    assert frame_places(total, count) == places
    assert 2 * seconds / count == pytest.approx(seconds_per_step)


def test_many_frames_are_spread_thinner() -> None:
    """2000 frames at one a second: the reference takes 768 of them, 5.2 seconds a step."""
    assert frame_count(DEFAULT, 2000, 2000.0, 2) == 768
    assert 2 * 2000 / 768 == pytest.approx(5.208333333333333)
    places = frame_places(2000, 768)
    assert places[:8] == (0, 2, 5, 7, 10, 13, 15, 18) and places[-1] == 1997
    assert frame_count(replace(DEFAULT, most=5), 2000, 2000.0, 2) == 4, "whole steps"


def test_one_frame_is_a_step_and_none_is_no_video() -> None:
    assert frame_count(DEFAULT, 1, 0.0, 2) == 1
    with pytest.raises(MediaShapeError, match="at least one frame"):
        frame_count(DEFAULT, 0, 0.0, 2)


def test_settings_of_a_folder() -> None:
    assert video_from_hf({}) == VideoProcessing(DynamicProcessing(128 * 784, 768 * 784))
    sizes = {"size": {"shortest_edge": 1000, "longest_edge": 9000}, "fps": 1.5, "min_frames": 2, "max_frames": 10}
    expected = VideoProcessing(DynamicProcessing(1000, 9000), 1.5, 2, 10)
    assert video_from_hf(sizes) == video_from_hf({"video_processor": sizes}) == expected
    with pytest.raises(UnsupportedModelError, match="do_resize"):
        video_from_hf({"do_resize": False})


def test_a_model_without_videos_sees_frames_as_pictures_of_one_piece() -> None:
    toy = VLM_PRESETS["toy-vlm"]
    assert toy.video_processing == VideoProcessing(toy.processing, rate=1.0, least=1, most=16)
    tiled = replace(toy, processing=TileProcessing((16, 16), max_tiles=4))
    assert tiled.video_processing.frame == TileProcessing((16, 16), max_tiles=1)
    assert tiled.fingerprint() != toy.fingerprint()

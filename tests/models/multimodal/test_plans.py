"""Plans from sizes alone, and that carrying them out gives what they promise. Pixels are compared in test_goldens.py."""

from dataclasses import replace

import numpy as np
import pytest

from tests.models.vision.test_packing import QWEN
from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.plans import (
    CropProcessing,
    DynamicProcessing,
    StretchProcessing,
    TileProcessing,
    plan_image,
)
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.multimodal.processing import cut, patchify, process_frames, process_image
from triptych.models.vision.packing import Grid

CLIP = VLM_PRESETS["toy-vlm"].vision


def test_a_crop_is_taken_from_the_middle_of_the_resized_picture() -> None:
    plan = plan_image(CropProcessing((16, 16), shortest=16), CLIP, 100, 40)
    (view,) = plan.views
    assert view.size == (40, 16)
    assert (view.boxes[0].left, view.boxes[0].top) == (12, 0)
    assert (plan.grids, plan.tokens) == ((Grid(4, 4),), 16)
    tall = plan_image(CropProcessing((16, 16), shortest=16), CLIP, 40, 100)
    assert tall.views[0].size == (16, 40)


def test_a_picture_made_square_is_not_cropped() -> None:
    plan = plan_image(CropProcessing((40, 40), shortest=40, pad=(1, 2, 3)), CLIP, 40, 8)
    assert plan.views[0].size == (40, 40)
    (piece,) = process_image(np.full((8, 40, 3), 200, np.uint8), plan, CLIP)
    rows = piece.patches.reshape(10, 10, 3, 16)
    assert (rows[:4] == np.array([1, 2, 3])[:, None]).all()
    assert (rows[4:6] == 200).all()
    assert (rows[6:] == np.array([1, 2, 3])[:, None]).all()


def test_a_stretch_ignores_the_ratio_of_sides() -> None:
    assert plan_image(StretchProcessing((16, 16)), CLIP, 7, 900).views[0].size == (16, 16)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((100, 100), 1), ((2000, 2000), 9), ((200, 100), 2), ((100, 300), 3), ((5000, 100), 12), ((448, 448), 1)],
)
def test_tiles_follow_the_ratio_of_sides_and_a_thumbnail_follows_several(size: tuple[int, int], tiles: int) -> None:
    vision = CLIP
    plan = plan_image(TileProcessing((448, 448)), vision, *size)
    pieces = tiles + (tiles > 1)
    assert len(plan.grids) == pieces
    assert plan.tokens == pieces * (448 // vision.patch_size) ** 2


def test_rounded_sizes_are_whole_merged_patches_between_the_limits() -> None:
    processing = DynamicProcessing(min_pixels=400, max_pixels=3000)
    for width, height in ((13, 9), (500, 30), (64, 48), (1, 1), (2, 390)):
        plan = plan_image(processing, QWEN, width, height)
        (box,) = plan.views[0].boxes
        assert box.width % 4 == box.height % 4 == 0
        # Sides are rounded up when there are too few pixels, so only the upper limit is sharp.
        assert 400 <= box.width * box.height <= 3000
        assert plan.tokens == box.width * box.height // 16
    with pytest.raises(MediaShapeError, match="too narrow"):
        plan_image(processing, QWEN, 1, 201)
    with pytest.raises(MediaShapeError, match="at least one pixel"):
        plan_image(processing, QWEN, 0, 5)


def test_a_cut_beyond_the_picture_is_black_there() -> None:
    plan = plan_image(CropProcessing((8, 8), exact=(5, 9)), CLIP, 5, 9)
    image = np.full((9, 5, 3), 9, np.uint8)
    out = cut(image, plan.views[0].boxes[0])
    assert out.shape == (8, 8, 3)
    # Three columns are missing: two before, one after.
    assert out[0, :, 0].tolist() == [0, 0, 9, 9, 9, 9, 9, 0]


def test_a_patch_is_channel_frame_row_column() -> None:
    frames = [np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) + 100 * at for at in range(2)]
    vision = replace(QWEN, temporal_patch=2)
    patches = patchify(frames, Grid(2, 2), vision).reshape(2, 2, 3, 2, 2, 2)
    assert patches[1, 0, 2, 1, 0, 1] == frames[1][2, 1, 2]
    assert patches[0, 1, 0, 0, 1, 0] == frames[0][1, 2, 0]
    single = patchify(frames[:1], Grid(2, 2), vision).reshape(2, 2, 3, 2, 2, 2)
    assert (single[:, :, :, 0] == single[:, :, :, 1]).all()


def test_a_video_is_a_piece_for_each_step_in_time_and_its_last_frame_is_repeated() -> None:
    vision = replace(QWEN, temporal_patch=2)
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30)]
    plan = plan_image(DynamicProcessing(16, 3000), vision, 8, 8)
    first, second = process_frames(frames, plan, vision)
    assert first.patches.reshape(-1, 3, 2, 4)[0, 0, :, 0].tolist() == [10, 20]
    assert second.patches.reshape(-1, 3, 2, 4)[0, 0, :, 0].tolist() == [30, 30]
    with pytest.raises(MediaShapeError, match="at least one frame"):
        process_frames([], plan, vision)


def test_a_picture_of_another_size_than_the_plan_is_refused() -> None:
    plan = plan_image(StretchProcessing((16, 16)), CLIP, 20, 10)
    with pytest.raises(MediaShapeError, match=r"uint8 \[10, 20, 3\]"):
        process_image(np.zeros((20, 10, 3), np.uint8), plan, CLIP)

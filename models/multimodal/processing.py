"""A plan carried out on pixels: RGB bytes in, patches out. numpy, and Pillow for resizing (imported where it is used).

Patches stay bytes; the encoder normalises them on its device, which is exact and a quarter of the traffic. The result of
resizing is Pillow's, as in the published processors' own Pillow versions.
"""

from collections.abc import Sequence

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.plans import Box, ImagePlan, Resample
from triptych.models.vision.config import VisionConfig
from triptych.models.vision.packing import Grid, Piece


def process_image(image: np.ndarray, plan: ImagePlan, vision: VisionConfig) -> tuple[Piece, ...]:
    """The pieces of an RGB image, uint8 [height, width, 3]. Raises MediaShapeError if the plan is for another size."""
    if image.dtype != np.uint8 or image.shape != (plan.size[1], plan.size[0], 3):
        raise MediaShapeError(
            f"the plan is for uint8 [{plan.size[1]}, {plan.size[0]}, 3], got {image.dtype} {list(image.shape)}"
        )
    if plan.pad is not None:
        image = _squared(image, plan.pad)
    cuts = [cut(resize(image, view.size, plan.resample), box) for view in plan.views for box in view.boxes]
    return tuple(Piece(patchify([picture], grid, vision), grid) for picture, grid in zip(cuts, plan.grids, strict=True))


def process_frames(frames: Sequence[np.ndarray], plan: ImagePlan, vision: VisionConfig) -> tuple[Piece, ...]:
    """The pieces of a video, its frames uint8 [height, width, 3]: each piece is `temporal_patch` frames.

    The last frame is repeated to fill the last piece. The plan is that of one frame, which must not be in tiles.
    """
    if len(plan.grids) != 1:
        raise MediaShapeError(f"a frame must be one piece, the plan has {len(plan.grids)}")
    if not frames:
        raise MediaShapeError("a video needs at least one frame")
    (grid,), (view,) = plan.grids, plan.views
    step = vision.temporal_patch
    filled = [*frames, *([frames[-1]] * (-len(frames) % step))]
    pictures = [cut(resize(frame, view.size, plan.resample), view.boxes[0]) for frame in filled]
    return tuple(Piece(patchify(pictures[at : at + step], grid, vision), grid) for at in range(0, len(pictures), step))


def resize(image: np.ndarray, size: tuple[int, int], resample: Resample) -> np.ndarray:
    """An RGB image, uint8 [height, width, 3], in another (width, height)."""
    from PIL import Image

    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling[resample.upper()]))


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """A rectangle of an image; black where it reaches beyond."""
    height, width, _ = image.shape
    out = np.zeros((box.height, box.width, 3), np.uint8)
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = min(box.top + box.height, height), min(box.left + box.width, width)
    out[top - box.top : bottom - box.top, left - box.left : right - box.left] = image[top:bottom, left:right]
    return out


def patchify(frames: Sequence[np.ndarray], grid: Grid, vision: VisionConfig) -> np.ndarray:
    """Patches uint8 [rows * columns, patch_dim] of pictures of one piece; a single one is repeated in time.

    Pixels beyond the last whole patch are dropped, as a convolution with a stride drops them.
    """
    size, repeat = vision.patch_size, vision.temporal_patch // len(frames)
    stacked = np.stack([frame[: grid.rows * size, : grid.columns * size] for frame in frames])
    stacked = np.repeat(stacked, repeat, axis=0)
    blocks = stacked.reshape(vision.temporal_patch, grid.rows, size, grid.columns, size, vision.channels)
    return np.ascontiguousarray(blocks.transpose(1, 3, 5, 0, 2, 4)).reshape(grid.rows * grid.columns, -1)


def _squared(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The image in the middle of a square."""
    height, width, _ = image.shape
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[...] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square

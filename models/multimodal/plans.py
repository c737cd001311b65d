"""What becomes of an image of a given size, without touching its pixels: how it is resized, cut, and how many tokens result.

Admission, placement and prompt expansion need only this. A plan is data that `processing.py` carries out: *views* of the
picture, each resized once and cut into boxes; every box becomes one piece for the encoder. The four strategies are those
of the published processors: a centre crop (CLIP, LLaVA-1.5, DINOv2), a stretch (SigLIP), tiles of the best aspect ratio
with a thumbnail (InternVL, arXiv 2404.16821), and sizes rounded to whole patches (Qwen2.5-VL, arXiv 2502.13923). All
sizes are (width, height) in pixels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from triptych.models.errors import MediaShapeError
from triptych.models.vision.config import VisionConfig
from triptych.models.vision.packing import Grid

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Size = tuple[int, int]

# Beyond this ratio of sides Qwen's processor refuses an image: rounding would distort it.
MAX_ASPECT = 200


@dataclass(frozen=True)
class Box:
    """A rectangle in a view. It may reach beyond the picture; there it is black."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """The picture resized to `size` and cut into `boxes`."""

    size: Size
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class ImagePlan:
    """What an image becomes. `pad` makes it square before anything else, with this colour.

    `grids` are those of its pieces, in the order of views and boxes; `piece_rows` are the embeddings that each gives.
    """

    size: Size
    views: tuple[View, ...]
    grids: tuple[Grid, ...]
    piece_rows: tuple[int, ...]
    resample: Resample
    pad: tuple[int, int, int] | None = None

    @property
    def tokens(self) -> int:
        """Rows of the language model's input that the image takes."""
        return sum(self.piece_rows)


@dataclass(frozen=True)
class CropProcessing:
    """Resize the shorter side to `shortest` (or to `exact`), cut `crop` out of the middle; `pad` squares before that."""

    crop: Size
    shortest: int | None = None
    exact: Size | None = None
    pad: tuple[int, int, int] | None = None
    resample: Resample = "bicubic"


@dataclass(frozen=True)
class StretchProcessing:
    """Resize to `size`, whatever the ratio of sides."""

    size: Size
    resample: Resample = "bicubic"


@dataclass(frozen=True)
class TileProcessing:
    """Cut into the arrangement of tiles whose ratio of sides is nearest, and add a thumbnail if there are several."""

    tile: Size
    min_tiles: int = 1
    max_tiles: int = 12
    resample: Resample = "bicubic"


@dataclass(frozen=True)
class DynamicProcessing:
    """Round both sides to whole merged patches, with the pixel count between the limits."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    resample: Resample = "bicubic"


Processing = CropProcessing | StretchProcessing | TileProcessing | DynamicProcessing


def plan_image(processing: Processing, vision: VisionConfig, width: int, height: int) -> ImagePlan:
    """The plan of an image of `width` x `height` pixels. Raises MediaShapeError if the model cannot take that size."""
    if width < 1 or height < 1:
        raise MediaShapeError(f"an image needs at least one pixel, got {width} x {height}")
    pad = None
    match processing:
        case CropProcessing():
            views, pad = (_crop(processing, width, height),), processing.pad
        case StretchProcessing(size=size):
            views = (_whole(size),)
        case TileProcessing():
            views = _tiles(processing, width, height)
        case DynamicProcessing():
            views = (_whole(_rounded(processing, vision, width, height)),)
    boxes = [box for view in views for box in view.boxes]
    grids = tuple(Grid(box.height // vision.patch_size, box.width // vision.patch_size) for box in boxes)
    rows = tuple(vision.output_rows(grid.rows, grid.columns) for grid in grids)
    return ImagePlan((width, height), views, grids, rows, processing.resample, pad)


def _whole(size: Size) -> View:
    return View(size, (Box(0, 0, *size),))


def _crop(processing: CropProcessing, width: int, height: int) -> View:
    if processing.pad is not None:
        width = height = max(width, height)
    size = processing.exact or (width, height)
    if processing.shortest is not None:
        short, long = sorted((width, height))
        longer = int(processing.shortest * long / short)
        size = (processing.shortest, longer) if width <= height else (longer, processing.shortest)
    crop_width, crop_height = processing.crop
    return View(size, (Box(_middle(size[0], crop_width), _middle(size[1], crop_height), crop_width, crop_height),))


def _middle(size: int, crop: int) -> int:
    """Where a crop begins. It is negative where the crop is larger, and then half of the border, rounded up, is before."""
    return (size - crop) // 2


def _tiles(processing: TileProcessing, width: int, height: int) -> tuple[View, ...]:
    columns, rows = _arrangement(processing, width, height)
    tile_width, tile_height = processing.tile
    boxes = tuple(
        Box(column * tile_width, row * tile_height, tile_width, tile_height)
        for row in range(rows)
        for column in range(columns)
    )
    tiles = View((columns * tile_width, rows * tile_height), boxes)
    return (tiles,) if len(boxes) == 1 else (tiles, _whole(processing.tile))


def _arrangement(processing: TileProcessing, width: int, height: int) -> Size:
    """Columns and rows of tiles: the nearest ratio; among equally near ones the larger, if the image has half its area."""
    best, nearest = (1, 1), math.inf
    for columns, rows in _arrangements(processing.min_tiles, processing.max_tiles):
        distance = abs(width / height - columns / rows)
        if distance < nearest:
            best, nearest = (columns, rows), distance
        elif distance == nearest and width * height > 0.5 * processing.tile[0] * processing.tile[1] * columns * rows:
            best = (columns, rows)
    return best


@lru_cache(maxsize=16)
def _arrangements(least: int, most: int) -> tuple[Size, ...]:
    # Sorted by area only: which of equal ratios wins depends on the order of the rest, and is as published.
    sides = range(1, most + 1)
    fitting = ((columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most)
    return tuple(sorted(fitting, key=lambda size: size[0] * size[1]))


def _rounded(processing: DynamicProcessing, vision: VisionConfig, width: int, height: int) -> Size:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaShapeError(f"an image of {width} x {height} is too narrow: sides may differ {MAX_ASPECT}-fold")
    unit = vision.patch_size * vision.merge
    sides = [round(side / unit) * unit for side in (width, height)]
    if sides[0] * sides[1] > processing.max_pixels:
        shrink = math.sqrt(width * height / processing.max_pixels)
        sides = [max(unit, math.floor(side / shrink / unit) * unit) for side in (width, height)]
    elif sides[0] * sides[1] < processing.min_pixels:
        grow = math.sqrt(processing.min_pixels / (width * height))
        sides = [math.ceil(side * grow / unit) * unit for side in (width, height)]
    return sides[0], sides[1]

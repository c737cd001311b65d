"""M-RoPE positions (Qwen2-VL, arXiv 2409.12191): every token has three, for time, height and width. numpy only.

Text counts all three up together. An item's tokens keep the position where it begins, plus their own step in time, row
and column of the merged grid; the text after it goes on behind the largest of these, as the paper says. So positions are
not the indices of tokens, and a sequence carries how far they are behind or ahead: `offset`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.plans import ImagePlan
from triptych.models.multimodal.prompt import MediaSpan


@dataclass(frozen=True)
class MediaGrid:
    """An item's merged grid: steps in time (1 for an image), rows, columns, and positions between two steps in time."""

    steps: int
    rows: int
    columns: int
    positions_per_step: float = 1.0


@dataclass(frozen=True)
class MropePositions:
    """Positions int32 [3, tokens] of a prompt; the token at index i after it stands at i + `offset`, three times."""

    positions: np.ndarray
    offset: int


def media_grid(config: MultimodalConfig, plan: ImagePlan, steps: int = 1, seconds_per_step: float = 0.0) -> MediaGrid:
    """The merged grid of an image, or of a video of `steps` pieces whose frames have this plan.

    Raises MediaShapeError if the plan is not one piece: M-RoPE models have no tiles.
    """
    if len(plan.grids) != 1:
        raise MediaShapeError(f"an item with M-RoPE positions is one piece, the plan has {len(plan.grids)}")
    (grid,), merge = plan.grids, config.vision.merge
    spacing = 1.0 if steps == 1 else (config.tokens_per_second or 0.0) * seconds_per_step
    return MediaGrid(steps, grid.rows // merge, grid.columns // merge, spacing)


def mrope_positions(length: int, spans: Sequence[MediaSpan], grids: Sequence[MediaGrid]) -> MropePositions:
    """The positions of a prompt of `length` tokens with an item's grid for each span, in order of offset.

    Raises MediaShapeError if a grid does not have as many tokens as its span, or spans overlap or leave the prompt.
    """
    if len(spans) != len(grids):
        raise MediaShapeError(f"{len(spans)} spans need as many grids, got {len(grids)}")
    positions = np.empty((3, length), np.int32)
    done = at = 0
    for span, grid in zip(spans, grids, strict=True):
        if span.count != grid.steps * grid.rows * grid.columns:
            raise MediaShapeError(
                f"a grid of {grid.steps} x {grid.rows} x {grid.columns} does not have {span.count} tokens"
            )
        if not done <= span.offset <= length - span.count:
            raise MediaShapeError(f"the span of {span.count} tokens at {span.offset} overlaps another or the end")
        text = span.offset - done
        positions[:, done : span.offset] = np.arange(at, at + text)
        at += text
        time, row, column = np.indices((grid.steps, grid.rows, grid.columns)).reshape(3, -1)
        time = (time * grid.positions_per_step).astype(np.int64)
        done = span.offset + span.count
        positions[:, span.offset : done] = np.stack((time, row, column)) + at
        at += max(grid.rows, grid.columns, int(time[-1]) + 1)
    positions[:, done:] = np.arange(at, at + length - done)
    return MropePositions(positions, at - done)

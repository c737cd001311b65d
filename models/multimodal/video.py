"""Which frames of a video a model sees, and what becomes of each: numbers only.

Frames are spread evenly over the whole video: so many a second of it, as far as the limits of their number allow. Qwen2.5-VL (arXiv 2502.13923) takes
them in pairs and knows how many seconds apart these are; other models see a video as pictures in a row.
"""

from dataclasses import dataclass

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.plans import Processing


@dataclass(frozen=True)
class VideoProcessing:
    """How a model takes a video.

    Attributes:
        frame: what becomes of each frame; one piece.
        rate: frames a second. least, most: bounds of their number; a video of fewer than `least` gives all it has.
    """

    frame: Processing
    rate: float = 2.0
    least: int = 4
    most: int = 768


def frame_count(processing: VideoProcessing, total: int, seconds: float, step: int) -> int:
    """How many frames are taken of a video that has `total` in `seconds`, in whole steps of `step` frames; one if it has fewer than a step.

    Raises MediaShapeError for a video without frames.
    """
    if total < 1:
        raise MediaShapeError("a video needs at least one frame")
    count = min(max(seconds * processing.rate, processing.least), processing.most, total)
    return max(int(count) // step * step, 1)


def frame_places(total: int, count: int) -> tuple[int, ...]:
    """The places of `count` of `total` frames, evenly spread; the first is always among them."""
    return tuple(number * total // count for number in range(count))

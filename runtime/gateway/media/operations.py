"""What decoder processes do for a gateway: decode an image or a sound and cut it into the encoder's pieces there, so that only those come back.

The table goes to the pool by name (runtime/media/pool.py) and is imported in its processes alone: this is where Pillow, soundfile and soxr come in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.plans import plan_image
from triptych.models.multimodal.processing import process_image
from triptych.models.speech.windows import split_windows
from triptych.runtime.gateway.media.description import understood
from triptych.runtime.media.errors import MediaKindError
from triptych.runtime.media.image import decode_image
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.operations import audio
from triptych.runtime.media.sniff import MediaType


def image_pieces(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """The patches of all pieces of an image, one piece after another: uint8 [patches, numbers of a patch]; and its size."""
    processing, vision = understood(options["model"])
    image = decode_image(data, MediaType(options["type"]), MediaLimits(**options["limits"]))
    height, width, _ = image.shape
    try:
        pieces = process_image(image, plan_image(processing, vision, width, height), vision)
    except MediaShapeError as error:
        raise MediaKindError(str(error)) from error
    return np.concatenate([piece.patches for piece in pieces]), {"width": width, "height": height}


def audio_windows(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """The samples of all windows of a sound, one window after another: float32 at options["rate"] Hz; and how many each window has."""
    samples, _ = audio(data, options)
    windows = split_windows(samples, options["window"])
    return np.concatenate(windows), {"lengths": [window.size for window in windows]}


OPERATIONS = {"image_pieces": image_pieces, "audio_windows": audio_windows}

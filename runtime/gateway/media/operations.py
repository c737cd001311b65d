"""What decoder processes do for a gateway: decode an image, frames or a sound and cut them into the encoder's pieces there, so that only those come back.

The table goes to the pool by name (runtime/media/pool.py) and is imported in its processes alone: this is where Pillow, soundfile and soxr come in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.plans import plan_image
from triptych.models.multimodal.processing import process_image
from triptych.models.speech.windows import split_windows
from triptych.runtime.gateway.media.description import understood
from triptych.runtime.media.errors import CorruptMediaError, MediaKindError
from triptych.runtime.media.image import decode_image
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.operations import audio, each_frame, video_index
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


def video_patches(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """The patches of some frames of a video, each by itself: uint8 [frames, patches, numbers of one frame's patch]; and the size of a frame, upright."""
    processing, vision = understood(options["model"])
    single = replace(vision, temporal_patch=1)
    found: list[np.ndarray] = []
    size: set[tuple[int, int]] = set()
    for frame in each_frame(data, options):
        height, width, _ = frame.shape
        size.add((width, height))
        try:
            pieces = process_image(frame, plan_image(processing, vision, width, height), single)
        except MediaShapeError as error:
            raise MediaKindError(str(error)) from error
        found.append(np.concatenate([piece.patches for piece in pieces]))
    if len(size) != 1:
        raise CorruptMediaError(f"the frames of the video are of {len(size)} sizes")
    ((width, height),) = size
    return np.stack(found), {"width": width, "height": height}


OPERATIONS = {
    "image_pieces": image_pieces,
    "video_index": video_index,
    "video_patches": video_patches,
    "audio_windows": audio_windows,
}

"""What decoder processes can do, by name. Imported there only: this is where Pillow, soundfile, soxr and PyAV come in.

soundfile, soxr and PyAV are optional (the extra `[media]`); an operation that lacks its library fails by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from triptych.runtime.media.child import Operation
from triptych.runtime.media.errors import MissingDecoderError
from triptych.runtime.media.image import decode_image
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import MediaType
from triptych.runtime.media.video_plan import Run

# Imported when the process starts, before its address space is bounded and outside any item's time.
try:
    from triptych.runtime.media.audio import decode_audio
except (ImportError, OSError) as error:  # OSError: libsndfile itself is missing
    _no_audio: Exception | None = error
else:
    _no_audio = None
try:
    from triptych.runtime.media.video import decode_runs, frames_of, index_video
except ImportError as error:
    _no_video: Exception | None = error
else:
    _no_video = None


def _item(options: Mapping[str, Any]) -> tuple[MediaType, MediaLimits]:
    return MediaType(options["type"]), MediaLimits(**options["limits"])


def image(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """[height, width, 3] uint8."""
    return decode_image(data, *_item(options)), {}


def audio(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """[samples] float32 at options["rate"] Hz."""
    _need(_no_audio, "sound", "soundfile and soxr")
    return decode_audio(data, *_item(options), options["rate"]), {}


def video_index(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """[packets, 2] int64: see `index_video`."""
    _need(_no_video, "video", "av")
    return index_video(data, *_item(options))


def video_frames(data: bytearray, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """[frames, height, width, 3] uint8: see `decode_runs`."""
    _need(_no_video, "video", "av")
    return decode_runs(data, *_item(options), *_runs(options)), {}


def each_frame(data: bytearray, options: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The frames of `video_frames` one after another: for operations that go on with them."""
    _need(_no_video, "video", "av")
    return frames_of(data, *_item(options), *_runs(options))


def _runs(options: Mapping[str, Any]) -> tuple[list[Run], tuple[int, int]]:
    width, height = options["size"]
    return [Run(start, end, tuple(times)) for start, end, times in options["runs"]], (width, height)


def _need(error: Exception | None, what: str, packages: str) -> None:
    if error is not None:
        raise MissingDecoderError(f"decoding {what} needs {packages}: pip install 'triptych[media]' ({error})")


OPERATIONS: dict[str, Operation] = {
    "image": image,
    "audio": audio,
    "video_index": video_index,
    "video_frames": video_frames,
}

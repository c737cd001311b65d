"""How much media is too much. Every bound is a field; `check_*` functions refuse before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.media.errors import CorruptMediaError, MediaLimitError


@dataclass(frozen=True)
class MediaLimits:
    """Bounds on what one request may bring.

    Attributes:
        item_bytes: largest item as the client sends it (after base64).
        request_bytes: all items of one request together.
        request_items: items of one request.
        image_pixels: width x height of an image, and of one frame of a video; at 50 million an RGB image takes 150 MB.
        video_frames: frames that a video may hold, used or not: all before a wanted one have to be decoded.
        sampled_frames: frames that may be taken from one video.
        sampled_pixels: pixels of all those frames together; three bytes each.
        audio_seconds: length of a sound.
        audio_channels: channels of a sound.
        decode_seconds: wall-clock time that a decoder process may spend on one item, or on one part of a video.
    """

    item_bytes: int = 32 * 2**20
    request_bytes: int = 128 * 2**20
    request_items: int = 64
    image_pixels: int = 50_000_000
    video_frames: int = 20_000
    sampled_frames: int = 768
    sampled_pixels: int = 250_000_000
    audio_seconds: float = 1800.0
    audio_channels: int = 16
    decode_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"media.{name} is {value!r}; expected a positive number")
        if self.item_bytes > self.request_bytes:
            raise ConfigError(
                f"media.item_bytes is {self.item_bytes}; expected at most media.request_bytes, which is {self.request_bytes}"
            )


def check_item(size: int, limits: MediaLimits, name: str = "the item") -> None:
    """Raises MediaLimitError for an item of `size` bytes that is too large, CorruptMediaError for an empty one."""
    if size == 0:
        raise CorruptMediaError(f"{name} is empty; expected the bytes of a file")
    if size > limits.item_bytes:
        raise MediaLimitError(f"{name} has {size} bytes; expected at most {limits.item_bytes}")


def check_request(sizes: Sequence[int], limits: MediaLimits) -> None:
    """Raises MediaLimitError if items of `sizes` bytes are too many, or too much together, for one request."""
    if len(sizes) > limits.request_items:
        raise MediaLimitError(f"the request has {len(sizes)} media items; expected at most {limits.request_items}")
    if sum(sizes) > limits.request_bytes:
        raise MediaLimitError(
            f"the request's media have {sum(sizes)} bytes together; expected at most {limits.request_bytes}"
        )


def check_pixels(width: int, height: int, limits: MediaLimits, name: str) -> None:
    """Raises MediaLimitError for too many pixels, CorruptMediaError for none."""
    if width < 1 or height < 1:
        raise CorruptMediaError(f"{name} is {width} x {height} pixels; expected at least 1 x 1")
    if width * height > limits.image_pixels:
        raise MediaLimitError(
            f"{name} is {width} x {height} pixels; expected at most {limits.image_pixels} pixels together"
        )

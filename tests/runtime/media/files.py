"""Media files for the tests, made on the spot."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image


def picture(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """[height, width, 3] uint8: smooth, so that lossy formats keep it, and with no symmetry, so that every turn shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    a, b, c = rng.uniform(0.2, 0.8, 3)
    channels = (x * a + y * (1 - a), x * b, y * c)
    return np.stack([(255 * np.clip(channel, 0, 1)).astype(np.uint8) for channel in channels], axis=-1)


def image_file(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of one grey value, in some kB a hundred million pixels, written row by row without ever being in memory."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    rows = min(height, 64)  # the rest of the rows would only make the file longer
    data = b"".join(squeeze.compress(bytes(width + 1)) for _ in range(rows)) + squeeze.flush()
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of [height, width] (grey) or [height, width, 3] (RGB) uint16: Pillow writes only the first."""
    height, width = values.shape[:2]
    colour = 2 if values.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def animation(format: str, frames: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """Frames of different colours; the first is red."""
    rng = np.random.default_rng(1)
    images = [Image.new("RGB", size, (255, 0, 0))]
    images += [Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 200, 3))) for _ in range(frames - 1)]
    return image_file(images[0], format, save_all=True, append_images=images[1:], duration=20)


def sine(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    """[samples] float32 of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound_file(samples: np.ndarray, rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    """samples: [frames] or [frames, channels]."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def video_frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames with a moving square and a brightness that rises: any two differ visibly."""
    frames = []
    for n in range(count):
        frame = picture(width, height) // 2
        frame[..., 2] = 4 * n % 256
        left, top = 3 * n % (width - 12), 2 * n % (height - 12)
        frame[top : top + 12, left : left + 12] = (250, 250 - 3 * n % 200, 20)
        frames.append(frame)
    return frames


def video_file(
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    container: str = "mp4",
    options: Mapping[str, str] | None = None,
    *,
    rate: int = 10,
    gop: int = 8,
) -> bytes:
    """options: of the encoder; `movflags` of the container.

    SVT-AV1 gives the thread that calls it real-time priority where it may, and never takes it back: all that this process runs afterwards
    would starve everything else on the machine, itself included. So it is taken back here.
    """
    policy = os.sched_getscheduler(0)
    try:
        return _encoded(frames, codec, container, options, rate, gop)
    finally:
        os.sched_setscheduler(0, policy, os.sched_param(0))


def _encoded(
    frames: Sequence[np.ndarray], codec: str, container: str, options: Mapping[str, str] | None, rate: int, gop: int
) -> bytes:
    chosen = {"preset": "ultrafast", "bf": "2", "sc_threshold": "0"} if codec == "libx264" else {}
    chosen |= options or {}
    muxing = {name: chosen.pop(name) for name in ("movflags",) if name in chosen}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=muxing) as file:
        stream: Any = file.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.options = chosen
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return buffer.getvalue()


def sequential(data: bytes, size: tuple[int, int] | None = None) -> tuple[list[float], np.ndarray]:
    """(seconds, [frames, height, width, 3]): what decoding the whole video from its beginning gives, the plainest way."""
    container: Any = av.open(io.BytesIO(data))
    with container as file:
        frames = list(file.decode(video=0))
        width, height = size or (frames[0].width, frames[0].height)
        pixels = [frame.to_ndarray(format="rgb24", width=width, height=height) for frame in frames]
        return [frame.pts * frame.time_base.numerator / frame.time_base.denominator for frame in frames], np.stack(
            pixels
        )

"""Media files that a client might send by mistake or on purpose: good ones of every format, damaged ones, other types, and ones that grow when they are opened."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from triptych.tools.trials.pictures import picture
from triptych.tools.trials.strange import mutated, noise

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
SIZES = ((1, 1), (3, 7), (30, 20), (200, 2), (1, 900), (640, 480))
STOCK = 12  # good pictures, so that some are sent again


@cache
def good(number: int) -> bytes:
    """A good picture of a format and size that follow from its number."""
    rng = random.Random(number)
    return picture(number, rng.choice(SIZES), rng.choice(FORMATS))


def odd_modes() -> list[bytes]:
    """Grey, palette, transparent, 16 bits, CMYK, animated: all of them good."""
    ramp = np.arange(30 * 20, dtype=np.uint16).reshape(20, 30)
    rgb = Image.fromarray((ramp % 256).astype(np.uint8)).convert("RGB")
    frames = [Image.new("RGB", (8, 6), (n, 0, 0)) for n in range(4)]
    return [
        _file(rgb.convert("L"), "PNG"),
        _file(rgb.convert("P"), "GIF"),
        _file(rgb.convert("RGBA"), "WEBP", lossless=True),
        _file(rgb.convert("CMYK"), "JPEG"),
        _file(Image.fromarray(ramp), "PNG"),
        _file(rgb.convert("1"), "PNG"),
        _file(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        _file(frames[0], "PNG", save_all=True, append_images=frames[1:]),
    ]


def bombs() -> list[bytes]:
    """Small files that say they are large: by their header, by what they unpack to, by a frame beyond the screen, by their text."""
    huge, long = 60_000, b"\0" * 20_000_000
    return [
        png(huge, huge, zlib.compress(bytes(1000))),
        png(7000, 7000, zlib.compress(bytes(1_000_000))),  # within the limit, and the data end early
        png(4, 4, zlib.compress(long)),  # more data than its size has
        png(4, 4, zlib.compress(bytes(20)), (b"zTXt", b"Comment\0\0" + zlib.compress(long))),
        png(4, 4, zlib.compress(bytes(20)), (b"iCCP", b"profile\0\0" + zlib.compress(long))),
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00\x3b",
        b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2,
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xda",
    ]  # fmt: skip


def others() -> list[bytes]:
    """What is no picture: a sound, a video's beginning, archives, a document, a program, text, nothing."""
    wav = b"RIFF" + struct.pack("<I", 52) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16) + b"data" + struct.pack("<I", 16) + bytes(16)  # fmt: skip
    return [
        wav,
        b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(40),
        b"PK\x03\x04" + bytes(60),
        b"\x1f\x8b" + zlib.compress(bytes(100)),
        b"%PDF-1.7\n1 0 obj",
        b"\x7fELF" + bytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'/>",
        b"<html><script>alert(1)</script>",
        b"II*\x00" + bytes(40),
        b"hello",
        b"",
    ]


def file(rng: random.Random) -> bytes:
    """Some file: every third is a good picture."""
    form = rng.random()
    if form < 0.35:
        return good(rng.randrange(STOCK))
    if form < 0.45:
        return rng.choice(_stock(odd_modes))
    if form < 0.6:
        data = good(rng.randrange(STOCK))
        return data[: rng.randint(1, len(data))]
    if form < 0.8:
        return mutated(rng.choice([good(rng.randrange(STOCK)), rng.choice(_stock(odd_modes))]), rng)
    if form < 0.87:
        return rng.choice(_stock(bombs))
    if form < 0.94:
        return rng.choice(_stock(others))
    return rng.choice([SIGNATURE, b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x10\0\0\0WEBP"]) + noise(rng)


def png(width: int, height: int, data: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """An 8-bit grey PNG of this packed data, whatever it unpacks to; `more` chunks before it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", data), (b"IEND", b"")]
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


@cache
def _stock(make: Callable[[], list[bytes]]) -> list[bytes]:
    """Made once: some take a moment."""
    return make()


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()

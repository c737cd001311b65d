"""Pictures for trials: small PNGs of random pixels, each known by its number. Another number is another picture to every cache."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIZE = (30, 20)  # pixels; the toy model crops to 16 x 16, so that resizing and cropping both have something to do


def picture(number: int, size: tuple[int, int] = SIZE, form: str = "PNG") -> bytes:
    """The file of picture `number`, `size` = (width, height) pixels. `form` is a format that Pillow writes."""
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()

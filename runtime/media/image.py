"""An image file to RGB: [height, width, 3] uint8, upright, over white. Runs in decoder processes.

The header is looked at first: an image with too many pixels is refused before any is decoded. Of an animation only the first frame is decoded. A file that
ends early or does not decode is refused; nothing is filled in.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from triptych.runtime.media.errors import CorruptMediaError, MediaKindError
from triptych.runtime.media.guard import decoding
from triptych.runtime.media.limits import MediaLimits, check_pixels
from triptych.runtime.media.sniff import MediaType

Image.MAX_IMAGE_PIXELS = None  # `check_pixels` refuses earlier, by a limit that can be set

PLUGINS = {
    MediaType.PNG: "PNG",
    MediaType.JPEG: "JPEG",
    MediaType.WEBP: "WEBP",
    MediaType.GIF: "GIF",
    MediaType.BMP: "BMP",
}
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
WHITE = 255


def decode_image(data: bytes | bytearray, type: MediaType, limits: MediaLimits) -> np.ndarray:
    """[height, width, 3] uint8.

    Raises CorruptMediaError, MediaLimitError (too many pixels), DecoderMemoryError, MediaKindError (no image).
    """
    if type not in PLUGINS:
        raise MediaKindError(f"{type.value} is no image")
    with decoding(type):
        return _decode(data, type, limits)


def _decode(data: bytes | bytearray, type: MediaType, limits: MediaLimits) -> np.ndarray:
    if type is MediaType.WEBP:
        check_pixels(*webp_size(data), limits, "the image")  # Pillow allocates two canvases before it tells the size
    with Image.open(BytesIO(data), formats=(PLUGINS[type],)) as image:
        check_pixels(*image.size, limits, "the image")
        image.load()
        check_pixels(*image.size, limits, "the image")  # a GIF's frame may be larger than its screen
        pixels = np.asarray(_over_white(_upright(image)))
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise CorruptMediaError(f"this {type.value} decodes to {pixels.dtype} {pixels.shape}; expected RGB")
    return np.ascontiguousarray(pixels)


def webp_size(data: bytes | bytearray) -> tuple[int, int]:
    """(width, height) from the first chunk of a WebP file (RFC 9649). Raises CorruptMediaError."""
    if len(data) < 30:
        raise CorruptMediaError(f"this image/webp ends after {len(data)} bytes, before its size is told")

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    match bytes(data[12:16]):
        case b"VP8X":
            return number(24, 3) + 1, number(27, 3) + 1
        case b"VP8 ":
            return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
        case b"VP8L":
            bits = number(21, 4)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case other:
            raise CorruptMediaError(f"this image/webp begins with a chunk {other!r}; expected VP8, VP8L or VP8X")


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. An EXIF block that cannot be read says nothing about that, and every viewer shows such a picture as it is."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow raises many types over a damaged block
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info  # the transparent colour, if there is one
    return turned


def _over_white(image: Image.Image) -> Image.Image:
    """RGB, transparent parts over white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode not in ALPHA_MODES and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image = image.convert("RGBA")
    over = Image.new("RGB", image.size, (WHITE,) * 3)
    over.paste(image, mask=image.getchannel("A"))
    return over


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit grey: the high byte, as for 16-bit colour. (Pillow's own conversion clips everything above 255 in some versions.)"""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
        raise CorruptMediaError(f"pixels of mode {image.mode} outside 0 to 65535")
    grey = (values.astype(np.uint32) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(WHITE), grey)
    return Image.fromarray(grey, "L").convert("RGB")

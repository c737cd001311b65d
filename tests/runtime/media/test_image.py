"""Every kind of image becomes upright RGB over white; what is damaged, too large or not what it says is refused, and bombs before they go off."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.media import files
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.media.errors import CorruptMediaError, MediaKindError, MediaLimitError
from triptych.runtime.media.image import decode_image, webp_size
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import MediaType, sniff

LIMITS = MediaLimits(image_pixels=1_000_000)


def decode(data: bytes, limits: MediaLimits = LIMITS) -> np.ndarray:
    array = decode_image(data, sniff(data), limits)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.flags.c_contiguous
    return array


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {"compress_level": 0})]
)
def test_lossless_formats_give_the_pixels_back(format: str, options: dict[str, int]):
    pixels = files.picture(33, 21)
    np.testing.assert_array_equal(decode(files.image_file(pixels, format, **options)), pixels)


@pytest.mark.parametrize(
    "options", [{"quality": 95, "subsampling": 0}, {"quality": 95, "subsampling": 0, "progressive": True}]
)
def test_jpeg_is_close(options: dict[str, int]):
    pixels = files.picture()
    assert np.abs(decode(files.image_file(pixels, "JPEG", **options)).astype(int) - pixels).max() <= 6


def test_grey_bilevel_and_palette_become_rgb():
    grey = files.picture()[..., 0]
    np.testing.assert_array_equal(decode(files.image_file(grey)), np.repeat(grey[..., None], 3, axis=2))
    bilevel = Image.fromarray(grey).convert("1")
    np.testing.assert_array_equal(decode(files.image_file(bilevel))[..., 0], 255 * np.asarray(bilevel).astype(np.uint8))
    palette = Image.fromarray(files.picture()).quantize(16)
    np.testing.assert_array_equal(decode(files.image_file(palette)), np.asarray(palette.convert("RGB")))


def test_transparency_is_laid_over_white():
    rgb, alpha = files.picture(), np.linspace(0, 255, 1200).reshape(30, 40).astype(np.uint8)
    data = files.image_file(np.dstack([rgb, alpha]))
    weight = alpha[..., None] / 255
    expected = rgb * weight + 255 * (1 - weight)
    assert np.abs(decode(data) - expected).max() <= 1
    grey = files.image_file(Image.fromarray(np.dstack([rgb[..., 0], alpha]), "LA"))
    assert np.abs(decode(grey)[..., 0] - expected[..., 0]).max() <= 1


def test_a_palette_with_a_transparent_colour_shows_white_there():
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for format in ("PNG", "GIF"):
        got = decode(files.image_file(image, format, transparency=1))
        np.testing.assert_array_equal(got[0], [[10, 20, 30], [255, 255, 255], [70, 80, 90]])
        np.testing.assert_array_equal(got[1], got[0][::-1])
    half = decode(files.image_file(image, "PNG", transparency=bytes([255, 0, 128])))
    assert abs(int(half[0, 2, 0]) - round(70 * 128 / 255 + 255 * 127 / 255)) <= 1


def test_a_transparent_colour_of_grey_and_rgb_files_shows_white():
    grey = Image.fromarray(np.array([[5, 6], [7, 5]], np.uint8))
    np.testing.assert_array_equal(decode(files.image_file(grey, transparency=5))[..., 0], [[255, 6], [7, 255]])
    rgb = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8))
    np.testing.assert_array_equal(
        decode(files.image_file(rgb, transparency=(1, 2, 3)))[0], [[255, 255, 255], [1, 2, 4]]
    )


def test_sixteen_bits_keep_their_high_byte():
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    np.testing.assert_array_equal(decode(files.png_16(values))[..., 1], values >> 8)
    colour = np.dstack([values, values[::-1], values[:, ::-1]])
    np.testing.assert_array_equal(decode(files.png_16(colour)), colour >> 8)


def test_cmyk_becomes_rgb():
    image = Image.fromarray(files.picture()).convert("CMYK")
    got = decode(files.image_file(image, "JPEG", quality=95, subsampling=0))
    assert np.abs(got.astype(int) - files.picture()).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_picture_stands_upright(orientation: int, format: str):
    """The tag says how to turn what is stored; what is stored is made by the inverse turn, in numpy."""
    upright = files.picture(40, 24)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    got = decode(files.image_file(np.ascontiguousarray(stored), format, exif=exif, **options))
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).max() <= 6


def test_a_turned_picture_keeps_its_transparent_colour():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.array([[5, 6, 7]], np.uint8))
    np.testing.assert_array_equal(decode(files.image_file(image, transparency=5, exif=exif))[..., 0], [[255], [6], [7]])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(files.image_file(files.picture(40, 24), "JPEG", exif=exif)).shape == (24, 40, 3)


def test_a_damaged_exif_block_does_not_hide_the_picture():
    data = files.image_file(files.picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(30))
    assert decode(data).shape == (30, 40, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_only_the_first_frame_is_decoded(format: str):
    data = files.animation(format, 2500)
    got = decode(data)
    assert got.shape == (6, 8, 3)
    assert np.abs(got.astype(int) - (255, 0, 0)).max() <= 8


def test_too_many_pixels_are_refused_before_any_is_decoded():
    bomb = files.png_bomb(50_000, 50_000)
    assert len(bomb) < 20_000
    tracemalloc.start()
    with pytest.raises(MediaLimitError, match="50000 x 50000"):
        decode(bomb, MediaLimits())
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 200, 0, 0, 54) + head + bytes(100)


def _webp(chunk: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk + bytes(64)


HUGE = {
    "gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "bmp": _bmp(40000, 40000),
    "webp, extended": _webp(b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\xff\xff" * 2),
    "webp, lossless": _webp(b"VP8L" + struct.pack("<I", 20) + b"\x2f" + struct.pack("<I", 0x0FFFFFFF)),
    "webp, lossy": _webp(b"VP8 " + struct.pack("<I", 20) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)),
}


@pytest.mark.parametrize("name", HUGE)
def test_the_header_alone_decides_in_every_format(name: str):
    with pytest.raises(MediaLimitError, match="pixels"):
        decode(HUGE[name])


def test_a_gif_whose_frame_is_larger_than_its_screen_is_measured_by_its_frame():
    small = files.image_file(files.picture(60, 50), "GIF")
    lying = small[:6] + struct.pack("<HH", 1, 1) + small[10:]
    with pytest.raises(MediaLimitError, match="pixels"):
        decode(lying, MediaLimits(image_pixels=100))


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"alpha": True}])
def test_the_size_in_a_webp_header_is_read_right(options: dict[str, bool]):
    pixels = files.picture(123, 45)
    if options.pop("alpha", False):
        pixels = np.dstack([pixels, pixels[..., 0]])
    assert webp_size(files.image_file(pixels, "WEBP", **options)) == (123, 45)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_file_that_ends_early_is_refused(format: str):
    """Cut in the header, early, in the middle and just before the end of the pixels."""
    rng = np.random.default_rng(0)
    data = files.image_file(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8), format)
    kind = sniff(data)
    for cut in (12, 20, 31, len(data) // 4, len(data) // 2, len(data) * 3 // 4, len(data) - 40):
        with pytest.raises((CorruptMediaError, MediaLimitError)):
            decode_image(data[:cut], kind, LIMITS)


def test_another_type_than_its_bytes_is_not_tried():
    with pytest.raises(CorruptMediaError):
        decode_image(files.image_file(files.picture(), "JPEG"), MediaType.PNG, LIMITS)
    with pytest.raises(MediaKindError):
        decode_image(b"", MediaType.WAV, LIMITS)


def test_what_only_pillow_knows_is_not_opened():
    buffer = io.BytesIO()
    Image.fromarray(files.picture()).save(buffer, "TIFF")
    with pytest.raises(MediaKindError, match="TIFF"):
        decode(buffer.getvalue())


_WHOLE = [
    files.image_file(files.picture(), format, **options)
    for format, options in [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
    ]
]


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(_WHOLE),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=8),
    st.floats(0.2, 1),
)
def test_flipped_bytes_and_cuts_raise_nothing_but_typed_errors(
    whole: bytes, flips: list[tuple[float, int]], keep: float
):
    data = bytearray(whole)
    for place, mask in flips:
        data[int(place * (len(data) - 1))] ^= mask
    data = data[: max(1, int(keep * len(data)))]
    try:
        decode(bytes(data))
    except TriptychError:
        pass

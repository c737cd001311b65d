"""What bytes are, by what they begin with. What a client says of them is compared with that, never believed.

Formats that are known and not accepted (SVG, PDF, HTML, archives, …) are refused by their names. Signatures: WHATWG MIME Sniffing, the EBML and
ISO base media file format headers, MPEG audio frame headers.
"""

from __future__ import annotations

from enum import Enum

from triptych.runtime.media.errors import CorruptMediaError, MediaKindError


class Kind(Enum):
    """What a model can be given."""

    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


class MediaType(Enum):
    """The accepted types, by their registered names."""

    PNG = "image/png"
    JPEG = "image/jpeg"
    WEBP = "image/webp"
    GIF = "image/gif"
    BMP = "image/bmp"
    WAV = "audio/wav"
    FLAC = "audio/flac"
    OGG = "audio/ogg"
    MP3 = "audio/mpeg"
    MP4 = "video/mp4"
    WEBM = "video/webm"

    @property
    def kind(self) -> Kind:
        return Kind(self.value.split("/")[0])


ACCEPTED = ", ".join(type.value for type in MediaType)

ALIASES = {
    "image/jpg": MediaType.JPEG,
    "image/pjpeg": MediaType.JPEG,
    "image/x-png": MediaType.PNG,
    "image/apng": MediaType.PNG,
    "image/x-ms-bmp": MediaType.BMP,
    "image/x-bmp": MediaType.BMP,
    "audio/x-wav": MediaType.WAV,
    "audio/wave": MediaType.WAV,
    "audio/vnd.wave": MediaType.WAV,
    "audio/x-flac": MediaType.FLAC,
    "audio/opus": MediaType.OGG,
    "audio/vorbis": MediaType.OGG,
    "application/ogg": MediaType.OGG,
    "audio/mp3": MediaType.MP3,
    "audio/x-mp3": MediaType.MP3,
}
NO_CLAIM = {"", "application/octet-stream", "binary/octet-stream"}

_BY_PREFIX = (
    (b"\x89PNG\r\n\x1a\n", MediaType.PNG),
    (b"\xff\xd8\xff", MediaType.JPEG),
    (b"GIF87a", MediaType.GIF),
    (b"GIF89a", MediaType.GIF),
    (b"fLaC", MediaType.FLAC),
)
_REFUSED = (
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"8BPS", "a Photoshop image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"FLV\x01", "a Flash video"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
    (b"FORM", "an AIFF sound"),
    (b"caff", "a CAF sound"),
    (b"#EXTM3U", "a playlist"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"%!PS", "a PostScript document"),
)
_MP4_BRANDS = {b"isom", b"mp41", b"mp42", b"avc1", b"dash", b"M4V ", b"MSNV", b"iso2", b"iso3", b"iso4", b"iso5", b"iso6", b"iso7", b"iso8", b"iso9"}  # fmt: skip
_OTHER_BRANDS = {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"mif1": "a HEIF image",
    b"msf1": "a HEIF image",
    b"M4A ": "an MPEG-4 sound",
    b"M4B ": "an MPEG-4 sound",
    b"qt  ": "a QuickTime video",
}
_OGG_SOUNDS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")
_TEXT_WINDOW = 1024  # bytes in which a text document shows what it is


def sniff(data: bytes) -> MediaType:
    """The type of `data`. Raises MediaKindError that names what it is instead, CorruptMediaError if it is empty."""
    if not data:
        raise CorruptMediaError("the item is empty; expected the bytes of a file")
    for prefix, type in _BY_PREFIX:
        if data.startswith(prefix):
            return type
    if data[:4] == b"RIFF":
        return _riff(data)
    if data[4:8] == b"ftyp":
        return _iso_media(data)
    if data[:4] == b"\x1aE\xdf\xa3":
        return _ebml(data)
    if data[:4] == b"OggS":
        return _ogg(data)
    if data[:2] == b"BM" and len(data) >= 18 and int.from_bytes(data[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):  # fmt: skip
        return MediaType.BMP
    for prefix, name in _REFUSED:
        if data.startswith(prefix):
            raise _refusal(name)
    if data[257:262] == b"ustar":
        raise _refusal("a tar archive")
    if data[:3] == b"ID3":
        return _tagged(data)
    if _is_mp3_frame(data[:4]):
        return MediaType.MP3
    raise _refusal(_text(data) or "of an unknown type")


def check_declared(declared: str | None, found: MediaType) -> None:
    """Raises MediaKindError if the client declared another type; `declared` is a MIME type, parameters allowed, or None."""
    name = (declared or "").split(";")[0].strip().lower()
    if name in NO_CLAIM:
        return
    expected = ALIASES.get(name)
    if expected is None:
        expected = next((type for type in MediaType if type.value == name), None)
    if expected is not found:
        raise MediaKindError(
            f"the item is declared as {name[:80]!r} but its bytes are {found.value}; declare that type, or none"
        )


def _refusal(what: str) -> MediaKindError:
    return MediaKindError(f"the item is {what}; expected one of {ACCEPTED}")


def _riff(data: bytes) -> MediaType:
    match data[8:12]:
        case b"WEBP":
            return MediaType.WEBP
        case b"WAVE":
            return MediaType.WAV
        case b"AVI ":
            raise _refusal("an AVI video")
        case _:
            raise _refusal("a RIFF file of an unknown type")


def _iso_media(data: bytes) -> MediaType:
    """By the major brand, then by the compatible ones."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, size - 3, 4))]
    if brands[0] in _OTHER_BRANDS:
        raise _refusal(_OTHER_BRANDS[brands[0]])
    if _MP4_BRANDS.isdisjoint(brands):
        raise _refusal("an ISO media file of an unknown brand")
    return MediaType.MP4


def _ebml(data: bytes) -> MediaType:
    """The document type is element 0x4282 of the EBML header, which comes first and is small."""
    at = data.find(b"\x42\x82", 4, 128)
    name = data[at + 3 : at + 3 + (data[at + 2] & 0x7F)] if 0 <= at < len(data) - 2 else b""
    match name.rstrip(b"\x00"):
        case b"webm":
            return MediaType.WEBM
        case b"matroska":
            raise _refusal("a Matroska video")
        case _:
            raise _refusal("an EBML file of an unknown type")


def _ogg(data: bytes) -> MediaType:
    """The first page holds the first packet of the first stream, which says what the stream is."""
    packet = data[27 + (data[26] if len(data) > 26 else 0) :][:8]
    if packet.startswith(_OGG_SOUNDS):
        return MediaType.OGG
    raise _refusal("an Ogg file whose first stream is neither Vorbis, Opus nor FLAC")


def _tagged(data: bytes) -> MediaType:
    """An ID3v2 tag (size in four bytes of seven bits), then the sound."""
    if len(data) < 10:
        raise CorruptMediaError("the item ends inside an ID3 tag; expected a sound after it")
    start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    if data[start : start + 4] == b"fLaC":
        raise _refusal("FLAC behind an ID3 tag, which FLAC does not have")
    if not _is_mp3_frame(data[start : start + 4].lstrip(b"\x00") or data[start : start + 4]):
        if start >= len(data):
            raise CorruptMediaError("the item ends inside an ID3 tag; expected a sound after it")
        if data[start] != 0:  # a tag may be padded with zeros
            raise _refusal("an ID3 tag without MPEG audio after it")
    return MediaType.MP3


def _is_mp3_frame(head: bytes) -> bool:
    """A valid header of an MPEG audio frame of layer III: eleven set bits, then fields of which some values are reserved."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer, bitrate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer == 1 and bitrate not in (0, 15) and rate != 3


def _text(data: bytes) -> str | None:
    """What kind of text it is, if it is text."""
    head = data[:_TEXT_WINDOW]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.replace(b"\x00", b"")[2:]
    elif b"\x00" in head:
        return None
    low = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in low:
        return "an SVG drawing"
    if low.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "an HTML page"
    if low.startswith(b"<?xml"):
        return "an XML document"
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character may be cut at the window's end
            return None
    return "text"

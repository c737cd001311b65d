"""The type comes from the bytes; what a client declares must agree; what is not accepted is refused by its name."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.media import files
from triptych.runtime.core.errors import Status, TriptychError
from triptych.runtime.media.errors import CorruptMediaError, MediaKindError
from triptych.runtime.media.sniff import Kind, MediaType, check_declared, sniff

SAMPLES = {
    MediaType.PNG: lambda: files.image_file(files.picture()),
    MediaType.JPEG: lambda: files.image_file(files.picture(), "JPEG"),
    MediaType.WEBP: lambda: files.image_file(files.picture(), "WEBP"),
    MediaType.GIF: lambda: files.image_file(files.picture(), "GIF"),
    MediaType.BMP: lambda: files.image_file(files.picture(), "BMP"),
    MediaType.WAV: lambda: files.sound_file(files.sine(0.05, 8000), 8000),
    MediaType.FLAC: lambda: files.sound_file(files.sine(0.05, 8000), 8000, "FLAC"),
    MediaType.OGG: lambda: files.sound_file(files.sine(0.05, 8000), 8000, "OGG"),
    MediaType.MP3: lambda: files.sound_file(files.sine(0.2, 16000), 16000, "MP3"),
    MediaType.MP4: lambda: files.video_file(files.video_frames(2)),
    MediaType.WEBM: lambda: files.video_file(files.video_frames(2), "libvpx", "webm"),
}


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", b"x")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return buffer.getvalue()


REFUSED = {
    "SVG": b'<?xml version="1.0"?><!-- x --><svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "SVG drawing": b"\xef\xbb\xbf  <svg></svg>",
    "HTML": b"\n <!DOCTYPE html><html></html>",
    "XML": b"<?xml version='1.0'?><a/>",
    "PDF": b"%PDF-1.7\n",
    "ZIP": _zip(),
    "tar": _tar(),
    "gzip": b"\x1f\x8b\x08\x00",
    "TIFF": b"II*\x00\x08\x00\x00\x00",
    "AVI": b"RIFF\x00\x00\x00\x00AVI LIST",
    "AVIF": b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00mif1",
    "HEIC": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    "QuickTime": b"\x00\x00\x00\x14ftypqt  \x00\x00\x02\x00qt  ",
    "Matroska": b"\x1aE\xdf\xa3\xa3B\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x88matroska",
    "playlist": b"#EXTM3U\nfile:///etc/passwd",
    "Ogg": b"OggS\x00\x02" + bytes(20) + b"\x01\x2a" + b"\x80theora" + bytes(40),
    "text": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "unknown": bytes(range(1, 200)) + bytes(100),
}


@pytest.mark.parametrize("type", MediaType, ids=lambda type: type.name)
def test_every_accepted_type_is_known_by_its_bytes(type: MediaType):
    assert sniff(SAMPLES[type]()) is type


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_accepted_is_refused_by_its_name(name: str):
    with pytest.raises(MediaKindError, match=name) as caught:
        sniff(REFUSED[name])
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert "image/png" in caught.value.message  # what is accepted is said, too


def test_an_mp3_behind_a_tag_is_an_mp3_and_a_tag_alone_is_none():
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    assert sniff(tag + SAMPLES[MediaType.MP3]()) is MediaType.MP3
    with pytest.raises(CorruptMediaError, match="ID3"):
        sniff(tag)
    with pytest.raises(MediaKindError, match="ID3"):
        sniff(tag + b"%PDF-1.7")


@pytest.mark.parametrize("head", [b"\xff\xfe<\x00s\x00v\x00g\x00", b"\xff\xfe<\x00h\x00t\x00m\x00l\x00>\x00"])
def test_utf16_text_is_not_taken_for_mpeg_audio(head: bytes):
    with pytest.raises(MediaKindError, match="SVG|HTML"):
        sniff(head)


def test_nothing_is_corrupt():
    with pytest.raises(CorruptMediaError, match="empty"):
        sniff(b"")


@pytest.mark.parametrize(
    "declared", [None, "", "application/octet-stream", "image/jpeg", "image/jpg", "IMAGE/JPEG; charset=binary"]
)
def test_a_declared_type_that_agrees_or_says_nothing_is_fine(declared: str | None):
    check_declared(declared, MediaType.JPEG)


@pytest.mark.parametrize("declared", ["image/png", "image/*", "text/html", "audio/wav", "jpeg"])
def test_a_declared_type_that_differs_is_refused_with_both_names(declared: str):
    with pytest.raises(MediaKindError) as caught:
        check_declared(declared, MediaType.JPEG)
    assert declared in caught.value.message
    assert "image/jpeg" in caught.value.message


def test_kinds_follow_from_types():
    assert {type.kind for type in MediaType} == set(Kind)
    assert MediaType.MP3.kind is Kind.AUDIO


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=64),
    st.sampled_from([b"", b"RIFF", b"OggS", b"ID3", b"BM", b"\x1aE\xdf\xa3", b"\xff\xfb", b"\0\0\0\x18ftyp"]),
)
def test_no_bytes_raise_anything_but_typed_errors(data: bytes, prefix: bytes):
    try:
        assert sniff(prefix + data) in MediaType
    except TriptychError as error:
        assert error.status is Status.INVALID_ARGUMENT

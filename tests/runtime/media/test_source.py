"""Parts of requests become items of a known type; what is malformed, of another kind, too large or remote is refused with the reason."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.runtime.media import files
from triptych.runtime.core.errors import Status, TriptychError
from triptych.runtime.media.errors import (
    CorruptMediaError,
    MediaError,
    MediaKindError,
    MediaLimitError,
    RemoteFetchError,
    RemoteMediaError,
)
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import Kind, MediaType
from triptych.runtime.media.source import check_remote, from_base64, from_bytes, from_data_uri, from_part, from_url

LIMITS = MediaLimits()
PNG = files.image_file(files.picture())
WAV = files.sound_file(files.sine(0.05, 8000), 8000)
HOSTS = frozenset({"images.example.org"})


def uri(data: bytes, head: str = "image/png") -> str:
    return f"data:{head};base64,{base64.b64encode(data).decode()}"


def image_part(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def audio_part(data: Any, format: Any = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": format}}


@pytest.mark.parametrize("head", ["image/png", "IMAGE/PNG", "image/png;name=a.png", "image/x-png", ""])
def test_a_data_uri_becomes_its_bytes(head: str):
    item = from_data_uri(uri(PNG, head), LIMITS)
    assert (item.kind, item.type, item.data, item.declared) == (
        Kind.IMAGE,
        MediaType.PNG,
        PNG,
        head.split(";")[0] or None,
    )


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("data:image/png,abc", MediaError, "not base64"),
        ("data:image/png;base64", MediaError, "no data URI"),
        ("data:;;base64,AAAA", MediaError, "no data URI"),
        ("data:image png;base64,AAAA", MediaError, "no data URI"),
        ("data:image/png;base64,", CorruptMediaError, "empty"),
        (uri(PNG)[:-1], CorruptMediaError, "base64"),
        (uri(PNG) + "\n", CorruptMediaError, "base64"),
        (uri(PNG) + "AAAA", CorruptMediaError, "base64"),
        (uri(PNG).replace("base64,", "base64, "), CorruptMediaError, "base64"),
        ("data:image/png;base64,-_-_", CorruptMediaError, "base64"),
        ("data:image/png;base64,AB=C", CorruptMediaError, "base64"),
        ("data:image/png;base64,ÄÄÄÄ", CorruptMediaError, "base64"),
        (uri(PNG, "image/jpeg"), MediaKindError, "'image/jpeg' but its bytes are image/png"),
        (uri(b"<svg/>", "image/svg+xml"), MediaKindError, "SVG"),
        (uri(b"%PDF-1.4", "image/png"), MediaKindError, "PDF"),
    ],
)
def test_a_data_uri_that_is_none_is_refused(text: str, error: type, words: str):
    if text == uri(PNG)[:-1]:
        text = text.rstrip("=")[:-1]
    with pytest.raises(error, match=words) as caught:
        from_data_uri(text, LIMITS)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert len(caught.value.message) < 500


def test_size_is_checked_before_decoding():
    limits = MediaLimits(item_bytes=len(PNG))
    assert from_data_uri(uri(PNG), limits).data == PNG
    with pytest.raises(MediaLimitError, match=f"{len(PNG)} bytes"):
        from_data_uri(uri(PNG), MediaLimits(item_bytes=len(PNG) - 1))
    with pytest.raises(MediaLimitError):
        from_base64("!" * 1000, MediaLimits(item_bytes=500))  # no base64 at all: not even looked at
    with pytest.raises(MediaLimitError):
        from_bytes(PNG, MediaLimits(item_bytes=len(PNG) - 1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
def test_base64_is_read_as_it_is_written_and_its_size_is_known(data: bytes):
    text = base64.b64encode(data).decode()
    assert from_base64(text, MediaLimits(item_bytes=max(1, len(data)))) == data
    if len(data) > 1:
        with pytest.raises(MediaLimitError):
            from_base64(text, MediaLimits(item_bytes=len(data) - 1))


def test_parts_of_openai_messages():
    item = from_part(image_part(uri(PNG), detail="high"), LIMITS)
    assert item.type is MediaType.PNG
    assert from_part({"type": "image_url", "image_url": uri(PNG)}, LIMITS).data == PNG
    sound = from_part(audio_part(base64.b64encode(WAV).decode()), LIMITS)
    assert (sound.type, sound.data, sound.declared) == (MediaType.WAV, WAV, "audio/wav")
    mp3 = files.sound_file(files.sine(0.2, 16000), 16000, "MP3")
    assert from_part(audio_part(base64.b64encode(mp3).decode(), "mp3"), LIMITS).type is MediaType.MP3
    video = files.video_file(files.video_frames(2))
    assert from_part({"type": "video_url", "video_url": {"url": uri(video, "video/mp4")}}, LIMITS).kind is Kind.VIDEO


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({}, "'None' is no media"),
        ({"type": "text", "text": "x"}, "'text' is no media"),
        ({"type": ["image_url"]}, "no media"),
        ({"type": "image_url"}, "image_url is missing"),
        ({"type": "image_url", "image_url": 3}, "image_url is missing or no object"),
        (image_part(None), "NoneType"),
        (image_part(uri(PNG), size=3), "unknown fields"),
        (image_part(uri(PNG), detail="best"), "detail is 'best'"),
        (image_part(uri(WAV, "audio/wav")), "audio/wav; expected image here"),
        ({"type": "input_audio", "input_audio": "x"}, "no object"),
        (audio_part(None), "data is missing"),
        (audio_part(base64.b64encode(WAV).decode(), "aac"), "format is 'aac'"),
        (audio_part(base64.b64encode(WAV).decode(), None), "format is 'None'"),
        (audio_part(base64.b64encode(WAV).decode(), "mp3"), "'audio/mpeg' but its bytes are audio/wav"),
        (audio_part(uri(WAV, "audio/wav")), "base64"),
        (audio_part(base64.b64encode(PNG).decode()), "image/png"),
    ],
)
def test_parts_of_another_form_are_refused(part: dict[str, Any], words: str):
    with pytest.raises(MediaError, match=words):
        from_part(part, LIMITS)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.com/a.png",
        "http://169.254.169.254/latest/meta-data",
        "https://images.example.org.evil.com/a.png",
        "https://evil.com/images.example.org",
        "https://images.example.org@evil.com/a.png",
        "https://user@images.example.org/a.png",
        "https://images.example.org\\@evil.com/a.png",
        "https://images.example.org\t.evil.com/",
        "https://images.example.org:port/",
        "http://[::1",
        "https:///a.png",
        "file:///etc/passwd",
        "ftp://images.example.org/a.png",
        "/etc/passwd",
        "",
        "javascript:alert(1)",
    ],
)
def test_remote_urls_are_refused_unless_their_host_is_allowed(url: str):
    with pytest.raises(RemoteMediaError):
        from_url(url, LIMITS, hosts=HOSTS)
    with pytest.raises(RemoteMediaError):
        from_part(image_part(url), LIMITS, HOSTS)


@pytest.mark.parametrize(
    "url",
    ["https://images.example.org/a.png", "http://IMAGES.example.org:8080/a.png?x=1", "https://images.example.org./"],
)
def test_an_allowed_host_is_recognised_and_fetching_is_said_not_to_be_built(url: str):
    assert check_remote(url, HOSTS) == "images.example.org"
    with pytest.raises(RemoteFetchError, match="not built") as caught:
        from_url(url, LIMITS, hosts=HOSTS)
    assert caught.value.status is Status.UNIMPLEMENTED
    with pytest.raises(RemoteMediaError):
        from_url(url, LIMITS)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80), st.text(max_size=60).map("data:".__add__), st.text(max_size=60).map("https://".__add__)
    )
)
def test_no_string_raises_anything_but_typed_errors(url: str):
    with pytest.raises(TriptychError):
        from_url(url, LIMITS)

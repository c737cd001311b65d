"""OpenAI's content parts reach the gateway as bytes; what is wrong with one is told by its place, in OpenAI's form."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from tests.runtime.gateway.http.fake_gateway import World
from tests.runtime.gateway.http.test_bad_bodies import refused

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
MP4 = b"\0\0\0\x18ftypisom" + bytes(20)
WAV = b"RIFF\x24\0\0\0WAVEfmt " + bytes(20)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image(url: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or f"data:image/png;base64,{b64(PNG)}"} | more}


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {
        "model": "toy",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": list(parts)}],
    } | fields


def test_parts_reach_the_gateway_in_order(world: World, http: httpx2.Client) -> None:
    text = {"type": "text", "text": "What is this?"}
    sound = {"type": "input_audio", "input_audio": {"data": b64(WAV), "format": "wav"}}
    handle = {"type": "media", "handle": "media-7"}
    clip = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{b64(MP4)}"}}
    response = http.post("/v1/chat/completions", json=chat(image(detail="high"), text, sound, handle, clip))
    assert response.status_code == 200, response.text
    system, user = world.gateway.requests[-1].chat.messages
    assert (system.content, len(system.parts), user.content) == ("s", 0, "")
    first, second, third, fourth, fifth = user.parts
    assert (fifth.media.data, fifth.media.type) == (MP4, "video/mp4")
    assert (first.media.data, first.media.type) == (PNG, "image/png")
    assert second.text == "What is this?"
    assert (third.media.data, third.media.type) == (WAV, "audio/wav")
    assert fourth.media.handle == "media-7"


def test_a_chat_of_text_parts_is_what_it_was(world: World, http: httpx2.Client) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert http.post("/v1/chat/completions", json=chat(*parts)).status_code == 200
    user = world.gateway.requests[-1].chat.messages[1]
    assert (user.content, len(user.parts)) == ("a\nb", 0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (image("https://example.com/cat.png"), "content[1]: media of 'example.com' are not fetched"),
        (image("file:///etc/passwd"), "content[1]: 'file:///etc/passwd' is no source of media"),
        (image("data:image/png;base64,%%%%"), "content[1]: the item is not valid base64"),
        (image("data:image/gif;base64," + b64(PNG)), "content[1]: the item is declared as 'image/gif'"),
        (image("data:image/svg+xml;base64," + b64(b"<svg></svg>")), "content[1]: "),
        (image("data:image/png;base64,"), "content[1]: the item is empty"),
        (image("data:audio/wav;base64," + b64(WAV)), "content[1]: the item is audio/wav; expected image here"),
        (image(detail="enormous"), "content[1]: image_url.detail is 'enormous'"),
        ({"type": "image_url"}, "content[1]: image_url is missing"),
        ({"type": "input_audio", "input_audio": {"data": b64(WAV)}}, "content[1]: input_audio.format"),
        ({"type": "media"}, "content[1].handle is not set"),
    ],
)
def test_a_bad_part_is_named(world: World, http: httpx2.Client, part: dict[str, Any], message: str) -> None:
    text = {"type": "text", "text": "a"}
    error = refused(http.post("/v1/chat/completions", json=chat(text, part)), 400, "messages")
    assert error["message"].startswith("messages[1]." + message), error["message"]
    assert not world.gateway.requests


@pytest.mark.parametrize("key", ["image", "audio", "video"])
def test_a_path_is_never_read(world: World, http: httpx2.Client, tmp_path: Path, key: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    for parts in ([{"type": key, key: str(secret)}], [image(), {"type": key, key: str(secret)}]):
        refused(http.post("/v1/chat/completions", json=chat(*parts)), 400, "messages")
    assert not world.gateway.requests


def test_what_the_gateway_says_of_a_part_is_said_of_messages(world: World, http: httpx2.Client) -> None:
    said = "chat.messages[1].parts[0]: this image/png cannot be decoded"
    world.gateway.fail_after = (0, grpc.StatusCode.INVALID_ARGUMENT, said, None)
    error = refused(http.post("/v1/chat/completions", json=chat(image())), 400, "messages")
    assert error["message"] == "messages[1].content[0]: this image/png cannot be decoded"
    said = "chat.messages[1].parts[0]: no media with handle 'media-1'"
    world.gateway.fail_after = (0, grpc.StatusCode.NOT_FOUND, said, None)
    error = refused(http.post("/v1/chat/completions", json=chat(image())), 404, "messages")
    assert error["code"] == "not_found"
    world.gateway.fail_after = (0, grpc.StatusCode.RESOURCE_EXHAUSTED, "chat.messages[1].parts[0]: full", 2.0)
    response = http.post("/v1/chat/completions", json=chat(image()))
    refused(response, 429)
    assert response.headers["retry-after"] == "2"


def test_a_body_with_too_much_media_is_413(world: World) -> None:
    with world.http(max_body_bytes=10_000) as url, httpx2.Client(base_url=url) as client:
        assert client.post("/v1/chat/completions", json=chat(image())).status_code == 200
        large = image(f"data:image/png;base64,{b64(PNG + bytes(10_000))}")
        refused(client.post("/v1/chat/completions", json=chat(large)), 413)

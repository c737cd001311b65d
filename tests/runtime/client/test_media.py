"""Media as applications have them: paths, bytes, data URIs, uploads, Pillow images and OpenAI's parts."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.gateway.calls import run
from tests.runtime.gateway.media.test_uploads import PngProcessor
from tests.runtime.gateway.media.toys import PLACEHOLDER, TOKENS, vlm
from tests.runtime.gateway.toy_cluster import cluster
from triptych.runtime.client import AsyncClient, Uploaded
from triptych.runtime.client.requests import chat, generate_request
from triptych.runtime.core.errors import InvalidRequestError, NotFoundError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
URI = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def test_images_may_be_paths_bytes_uris_uploads_and_pillow_images(tmp_path: Path):
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    request = generate_request("what?", images=[path, str(path), PNG, URI, Uploaded("media-1"), picture])
    *files, uri, upload, pillow = request.media
    assert [(media.data, media.type) for media in files] == [(PNG, "image")] * 3
    assert (uri.data, uri.type) == (PNG, "image/png")
    assert (upload.handle, upload.WhichOneof("source")) == ("media-1", "handle")
    with Image.open(io.BytesIO(pillow.data)) as back:
        assert back.size == (3, 2) and back.getpixel((0, 0)) == (1, 2, 3)


def test_videos_stand_after_images_and_say_what_they_are():
    request = generate_request("what?", videos=[b"film"], images=[PNG], media=[Uploaded("media-2")])
    assert [(media.data, media.handle, media.type) for media in request.media] == [
        (PNG, "", "image"),
        (b"film", "", "video"),
        (b"", "media-2", ""),
    ]
    made = chat([{"role": "user", "content": [{"type": "video", "video": b"film"}]}])
    assert (made.messages[0].parts[0].media.data, made.messages[0].parts[0].media.type) == (b"film", "video")


def test_messages_have_parts_in_openais_form_and_in_ours():
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image", "image": PNG},
        {"type": "media", "handle": "media-1"},
    ]
    made = chat([{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}])
    text, url, own, handle = made.messages[0].parts
    assert text.text == "a" and url.media.data == own.media.data == PNG and handle.media.handle == "media-1"
    assert (made.messages[0].content, made.messages[1].content) == ("", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "messages[0].content is empty"),
        (5, "messages[0].content is int"),
        ([5], "messages[0].content[0] is int"),
        ([{"type": "text"}], "messages[0].content[0].text is not set"),
        ([{"type": "sculpture"}], "messages[0].content[0] has the type 'sculpture'"),
        ([{"type": "image"}], "messages[0].content[0].image is not set"),
        ([{"type": "image", "image": "/no/such/file"}], "messages[0].content[0].image: /no/such/file cannot be read"),
        ([{"type": "image", "image": "https://x/y"}], "messages[0].content[0].image: URLs are not fetched"),
        ([{"type": "image", "image": object()}], "messages[0].content[0].image is object"),
        ([{"type": "image_url", "image_url": "https://x/y"}], "messages[0].content[0]: media of 'x' are not fetched"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_by_its_place(content: object, message: str):
    with pytest.raises(InvalidRequestError) as caught:
        chat([{"role": "user", "content": content}])
    assert caught.value.message.startswith(message)


def test_images_are_for_prompts_and_messages_have_their_own():
    with pytest.raises(InvalidRequestError, match="in the content of messages"):
        generate_request(messages=[{"role": "user", "content": "a"}], images=[PNG])


def test_a_client_uploads_uses_and_deletes():
    async def body():
        async with cluster(vlm(), processor=PngProcessor()) as c, AsyncClient(c.address) as client:
            upload = await client.upload_media(PNG * 10_000, "image/png")
            assert (upload.type, upload.size) == ("image/png", len(PNG) * 10_000)
            result = await client.complete("what?", images=[upload], max_tokens=2)
            assert result.usage is not None and result.usage.media_tokens == TOKENS
            assert c.scheduler.last.request.prompt.count(PLACEHOLDER) == TOKENS
            messages = [
                {"role": "user", "content": [{"type": "image", "image": upload}, {"type": "text", "text": "?"}]}
            ]
            assert (await client.complete(messages=messages, max_tokens=2)).usage is not None
            await client.delete_media(upload)
            with pytest.raises(NotFoundError):
                await client.delete_media(upload)

    run(body())


def test_the_client_needs_no_pillow_no_numpy_and_no_jax():
    code = "import sys, triptych.runtime.client; sys.exit(bool({'PIL', 'numpy', 'jax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

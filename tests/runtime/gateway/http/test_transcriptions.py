"""Sounds over HTTP: the official client's transcriptions and translations, forms that are broken, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.runtime.gateway.http.fake_gateway import World, reply
from triptych.runtime.gateway.http.errors import HttpError
from triptych.runtime.gateway.http.forms import MAX_FIELDS, File, parse_form

SOUND = ("speech.wav", b"RIFF\r\n--x\x00\xff")
HEARD = SOUND[1].decode("latin-1")
URL = "/v1/audio/transcriptions"


@pytest.fixture
def client(world: World, url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_transcription(client: openai.OpenAI) -> None:
    answer: Any = client.audio.transcriptions.create(model="toy", file=SOUND, language="de", temperature=0.0)
    assert answer.text == reply(f"de={HEARD}", 0)
    assert answer.usage.type == "duration" and answer.usage.seconds == 3


def test_as_text_and_with_its_length(client: openai.OpenAI) -> None:
    text: Any = client.audio.transcriptions.create(model="toy", file=SOUND, response_format="text")
    assert text == reply(f"={HEARD}", 0) + "\n"
    whole: Any = client.audio.transcriptions.create(model="toy", file=SOUND, language="de", response_format="verbose_json")  # fmt: skip
    assert (whole.text, whole.language, whole.duration) == (reply(f"de={HEARD}", 0), "de", 2.5)


def test_a_stream(client: openai.OpenAI) -> None:
    events: Any = list(client.audio.transcriptions.create(model="toy", file=SOUND, stream=True))
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"} and done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text == reply(f"={HEARD}", 0)
    assert len(deltas) > 3 and done.usage.seconds == 3


def test_a_translation(http: httpx2.Client) -> None:
    """As the official client posts it, whose method for it is deprecated."""
    answer = http.post("/v1/audio/translations", data={"model": "toy"}, files={"file": SOUND})
    assert answer.json()["text"] == reply(f">{HEARD}", 0)


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        ({"response_format": "srt"}, "response_format", "one of json, text, verbose_json"),
        ({"response_format": "text", "stream": "true"}, "response_format", "json where stream is true"),
        ({"stream": "perhaps"}, "stream", "true or false"),
        ({"temperature": "warm"}, "temperature", "a number"),
        ({"temperature": "inf"}, "temperature", "a number"),
        ({"prompt": "Before that"}, "prompt", "not supported here"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]", "not supported here"),
        ({"loudness": "11"}, "loudness", "loudness"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    http: httpx2.Client, data: dict[str, str], field: str, words: str
) -> None:
    answer = http.post(URL, data=data, files={"file": SOUND})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field and words in error["message"]


def test_what_the_gateway_refuses_names_the_field(http: httpx2.Client, world: World) -> None:
    import grpc

    world.gateway.fail_after = (0, grpc.StatusCode.INVALID_ARGUMENT, "media[0]: no sound", None)
    assert http.post(URL, files={"file": SOUND}).json()["error"]["param"] == "file"
    world.gateway.fail_after = (0, grpc.StatusCode.INVALID_ARGUMENT, "speech.language: name one of de, en", None)
    error = http.post(URL, data={"language": "xx"}, files={"file": SOUND}).json()["error"]
    assert error["param"] == "language"


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        ({"json": {"file": "x"}}, 415),
        ({"data": {"model": "toy"}, "files": {"other": SOUND}}, 400),
        ({"data": {"file": "text"}, "files": {"model": ("m", b"x")}}, 400),
        ({"files": {"file": ("empty.wav", b"")}}, 400),
        ({"content": b"--b\r\n\r\nx", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400),
        ({"content": b"--b--\r\n", "headers": {"content-type": "multipart/form-data"}}, 415),
    ],
)
def test_bodies_that_are_no_form_of_a_sound(http: httpx2.Client, request_of: dict[str, Any], status: int) -> None:
    answer = http.post(URL, **request_of)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def form(*parts: bytes, end: bytes = b"\r\n--b--\r\n") -> bytes:
    return b"".join(b"\r\n--b\r\n" + part for part in parts).lstrip(b"\r\n") + end


def test_a_form_is_read_to_the_byte() -> None:
    data = bytes(range(256)) + b"\r\n-- b\r\n\r\n--\r\n"
    body = form(
        b'Content-Disposition: form-data; name="file"; filename="a \\"b\\".wav"\r\nContent-Type: audio/wav\r\n\r\n'
        + data,
        b'content-disposition: form-data; name="language"\r\n\r\nde',
        b'Content-Disposition: form-data; name="empty"\r\n\r\n',
    )
    assert parse_form(b"before\r\n" + body, "b") == {"file": File('a "b".wav', data), "language": "de", "empty": ""}


PART = b'Content-Disposition: form-data; name="n%d"\r\n\r\nx'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing of the kind",
        form(PART % 1, end=b""),
        form(PART % 1, PART % 1),
        form(b"\r\n\r\nx"),
        form(b"x"),
        form(b"Content-Disposition: attachment; name=n\r\n\r\nx"),
        form(b'Content-Disposition: form-data; name="n"\r\n\r\n\xff'),
        form(*(PART % n for n in range(MAX_FIELDS + 2))),
    ],
)
def test_what_is_no_form(body: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        parse_form(body, "b")
    assert caught.value.status == 400

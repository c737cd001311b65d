"""Whatever is wrong with a request gets OpenAI's error object with the field's name; nothing that changes the answer is ignored."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx2
import pytest

from tests.runtime.gateway.http.fake_gateway import World

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "toy", "prompt": "ab"}


def refused(response: httpx2.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error object, whose form is checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"] and error["type"]
    assert error["param"] == param
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("store", True),
        ("service_tier", "flex"),
        ("reasoning_effort", "high"),
        ("web_search_options", {"user_location": None}),
        ("structured_outputs", {"regex": "a"}),
        ("guided_json", {"type": "object"}),
        ("use_beam_search", True),
        ("length_penalty", 2.0),
        ("truncate_prompt_tokens", 5),
        ("chat_template", "{{ x }}"),
        ("continue_final_message", True),
        ("echo", True),
        ("frobnicate", 1),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", 10**30),
        ("temperature", "hot"),
        ("temperature", [1]),
        ("top_k", 2**40),
        ("seed", 2**64),
        ("n", 0),
        ("n", 1000),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "5"),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"5": "much"}),
        ("logit_bias", [5]),
        ("logprobs", 5),
        ("top_logprobs", 5),
        ("top_logprobs", 21),
        ("ignore_eos", "yes"),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("model", 5),
        ("messages", None),
        ("messages", []),
        ("messages", "Hi"),
        ("messages", [5]),
        ("messages", [{"role": "wizard", "content": "Hi"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user", "content": "Hi", "name": "Ann"}]),
        ("messages", [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]),
    ],
)
def test_a_chat_field_that_is_wrong_or_not_supported_is_named(
    http: httpx2.Client, world: World, field: str, value: Any
) -> None:
    error = refused(http.post("/v1/chat/completions", json=CHAT | {field: value}), 400, field)
    assert error["type"] == "invalid_request_error" and field in error["message"]
    assert world.gateway.requests == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "end"),
        ("best_of", 3),
        ("max_tokens", 0),
        ("logprobs", 21),
        ("logprobs", True),
        ("prompt", None),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", ["a", 1]),
        ("prompt", [1, -1]),
        ("prompt", [[1], [2**32]]),
        ("prompt", [1.5]),
        ("prompt", {"text": "a"}),
        ("prompt", ["a"] * 65),
        ("prompt_embeds", "AAAA"),
        ("tools", [1]),
    ],
)
def test_a_completion_field_that_is_wrong_or_not_supported_is_named(
    http: httpx2.Client, field: str, value: Any
) -> None:
    refused(http.post("/v1/completions", json=TEXT | {field: value}), 400, field)


@pytest.mark.parametrize(
    "body", [{"max_tokens": 5, "max_completion_tokens": 6}, {"stream": True, "prompt_logprobs": 1}]
)
def test_contradictions_are_refused(http: httpx2.Client, body: dict[str, Any]) -> None:
    refused(
        http.post("/v1/chat/completions", json=CHAT | body),
        400,
        next(iter(body.keys() - {"stream", "max_completion_tokens"})),
    )


def test_unknown_stream_options_are_named(http: httpx2.Client) -> None:
    body = CHAT | {"stream": True, "stream_options": {"speed": 1}}
    refused(http.post("/v1/chat/completions", json=body), 400, "stream_options.speed")


def test_a_prompt_that_is_too_long_has_openais_code(http: httpx2.Client) -> None:
    error = refused(http.post("/v1/completions", json=TEXT | {"prompt": "x" * 200}), 400, "prompt")
    assert error["code"] == "context_length_exceeded"


def test_text_that_utf8_cannot_say_is_refused(http: httpx2.Client) -> None:
    response = http.post(
        "/v1/completions", content=b'{"prompt": "\\ud800"}', headers={"content-type": "application/json"}
    )
    refused(response, 400)


GARBAGE = [
    b"", b"{", b"[]", b"null", b'"text"', b"5", b"\xff\xfe", b"{\"a\": NaN}", b"{\"prompt\": Infinity}", b"[" * 100_000, b'{"a":' * 100_000,
    b'{"max_tokens": ' + b"9" * 10_000 + b"}", b"model=toy&prompt=ab", b"\x00" * 64,
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_a_bad_request(http: httpx2.Client, path: str, body: bytes) -> None:
    refused(http.post(path, content=body, headers={"content-type": "application/json"}), 400)


def test_damaged_bodies_never_break_the_server(http: httpx2.Client) -> None:
    rng = random.Random(5)
    whole = json.dumps(CHAT | {"max_tokens": 2, "stop": ["a"], "logit_bias": {"5": 1.0}}).encode()
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        response = http.post("/v1/chat/completions", content=bytes(body), headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404), (bytes(body), response.text)
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_other_content_types_routes_and_methods_are_refused_in_the_same_form(http: httpx2.Client) -> None:
    refused(http.post("/v1/completions", data={"prompt": "ab"}), 415)
    refused(http.post("/v1/embeddings", json={}), 404)
    refused(http.get("/v1/chat/completions"), 405)
    refused(http.get("/nothing"), 404)
    refused(http.post("/health"), 405)

"""The bytes are OpenAI's: events, their order, and every key of every object."""

from __future__ import annotations

import json
from typing import Any

import grpc
import httpx2
import pytest

from tests.runtime.gateway.http.fake_gateway import World, reply

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
ANSWER = reply("user:Hi", 0)


def post(http: httpx2.Client, path: str, body: dict[str, Any], status: int = 200) -> Any:
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def events(http: httpx2.Client, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, checked down to the byte; the last is the text [DONE] or an error."""
    response = http.post(f"/v1/{path}", json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.content.endswith(b"\n\n")
    lines = response.content[:-2].split(b"\n\n")
    assert all(line.startswith(b"data: ") and b"\n" not in line for line in lines)
    payloads = [line.removeprefix(b"data: ").decode() for line in lines]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def shared(chunks: list[Any], object: str) -> list[Any]:
    """The chunks without what all of them must agree on."""
    heads = {(c.pop("id"), c.pop("object"), c.pop("created"), c.pop("model")) for c in chunks}
    assert len(heads) == 1
    ((id, kind, created, model),) = heads
    assert kind == object and model == "toy" and isinstance(created, int) and id.startswith(("chatcmpl-", "cmpl-"))
    return chunks


def test_a_chat_stream_is_role_text_reason_done(http: httpx2.Client) -> None:
    *chunks, end = events(http, "chat/completions", CHAT)
    first, *texts, last = shared(chunks, "chat.completion.chunk")

    def choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    assert first == choice({"role": "assistant", "content": "", "refusal": None})
    assert texts == [choice({"content": character}) for character in ANSWER]
    assert last == choice({}, "stop")
    assert end == "[DONE]"


def test_usage_comes_last_and_is_null_before(http: httpx2.Client) -> None:
    *chunks, usage, end = events(http, "chat/completions", CHAT | {"stream_options": {"include_usage": True}})
    assert all(chunk["usage"] is None for chunk in chunks) and end == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": len(ANSWER),
        "total_tokens": 7 + len(ANSWER),
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_continuous_usage_counts_up(http: httpx2.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, usage, _ = events(http, "completions", {"model": "toy", "prompt": "ab", "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [*range(1, len(reply("ab", 0)) + 1), len(reply("ab", 0))] and usage["choices"] == []


def test_a_completion_stream_is_text_reason_done(http: httpx2.Client) -> None:
    *chunks, end = events(http, "completions", {"model": "toy", "prompt": "ab", "max_tokens": 2})
    assert end == "[DONE]"
    assert shared(chunks, "text_completion") == [
        {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]}
        for text, reason in (("0", None), ("é", None), ("", "length"))
    ]


def test_an_error_inside_a_stream_is_its_last_event(http: httpx2.Client, world: World) -> None:
    world.gateway.fail_after = (1, grpc.StatusCode.INTERNAL, "the pool is lost", None)
    *_, error = events(http, "chat/completions", CHAT)
    assert error == {
        "error": {"message": "the pool is lost", "type": "server_error", "param": None, "code": "internal_error"}
    }


def test_a_whole_chat(http: httpx2.Client) -> None:
    answer = post(http, "chat/completions", CHAT)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    assert answer["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]


def test_log_probabilities_of_a_chat(http: httpx2.Client) -> None:
    body = CHAT | {"logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    (choice,) = post(http, "chat/completions", body)["choices"]
    second = choice["logprobs"]["content"][1]
    assert choice["logprobs"]["refusal"] is None and len(choice["logprobs"]["content"]) == 2
    assert second == {
        "token": "é",
        "logprob": -1.0,
        "bytes": [195, 169],
        "top_logprobs": [
            {"token": "é", "logprob": -1.0, "bytes": [195, 169]},
            {"token": "ê", "logprob": -1.125, "bytes": [195, 170]},
        ],
    }
    streamed = [c["choices"][0]["logprobs"] for c in events(http, "chat/completions", body)[1:3]]
    assert [content for lp in streamed for content in lp["content"]] == choice["logprobs"]["content"]


def test_log_probabilities_of_a_completion(http: httpx2.Client) -> None:
    body = {"model": "toy", "prompt": "ab", "max_tokens": 2, "logprobs": 1}
    (choice,) = post(http, "completions", body)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["0", "é"],
        "token_logprobs": [-0.25, -0.375],
        "top_logprobs": [{"0": -0.25}, {"é": -0.375}],
        "text_offset": [0, 1],
    }
    streamed = [c["choices"][0]["logprobs"] for c in events(http, "completions", body)[:2]]
    assert [lp["text_offset"] for lp in streamed] == [[0], [1]]


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
def test_echo_puts_the_prompt_first(http: httpx2.Client, prompt: Any) -> None:
    body = {"model": "toy", "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 0}
    (choice,) = post(http, "completions", body)["choices"]
    assert choice["text"] == "ab0" and "prompt_logprobs" not in choice
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "0"],
        "token_logprobs": [None, -0.125, -0.25],
        "top_logprobs": [None, {"b": -0.125}, {"0": -0.25}],
        "text_offset": [0, 1, 2],
    }
    first, second, last, end = events(http, "completions", body)
    assert [c["choices"][0]["text"] for c in (first, second, last)] == ["ab", "0", ""] and end == "[DONE]"
    assert first["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.125]
    assert second["choices"][0]["logprobs"]["text_offset"] == [2]


def test_echo_of_no_token_scores_the_prompt_alone(http: httpx2.Client) -> None:
    body = {"model": "toy", "prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = post(http, "completions", body)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"], choice["finish_reason"]) == ("abc", ["a", "b", "c"], "length")
    assert (answer["usage"]["completion_tokens"], answer["usage"]["total_tokens"]) == (0, 3)


def test_prompt_log_probabilities_are_vllms(http: httpx2.Client) -> None:
    body = CHAT | {"max_tokens": 1, "prompt_logprobs": 2}
    found = post(http, "chat/completions", body)["prompt_logprobs"]
    assert len(found) == 7 and found[0] is None
    assert found[1] == {
        "115": {"logprob": -0.125, "rank": 1, "decoded_token": "s"},
        "116": {"logprob": -0.25, "rank": 2, "decoded_token": "t"},
    }
    assert post(http, "completions", {"prompt": "ab", "prompt_logprobs": 0})["choices"][0]["prompt_logprobs"] == [
        None,
        {"98": {"logprob": -0.125, "rank": None, "decoded_token": "b"}},
    ]


def test_every_sampling_field_reaches_the_gateway(http: httpx2.Client, world: World) -> None:
    body = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.2, "frequency_penalty": 0.3,
        "repetition_penalty": 1.1, "logit_bias": {"5": -100, "6": 2.5}, "seed": -1, "stop": ["x", "y"], "stop_token_ids": [7],
        "ignore_eos": True, "min_tokens": 1, "include_stop_str_in_output": True, "skip_special_tokens": False, "n": 2,
        "max_completion_tokens": 3.0, "logprobs": True, "priority": -4, "cache_salt": "s", "user": "me", "store": False,
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "top_logprobs": None, "function_call": None,
    }  # fmt: skip
    post(http, "chat/completions", CHAT | body)
    (request,) = world.gateway.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.2, 0.3, 1.1)
    assert dict(sampling.logit_bias) == {5: -100.0, 6: 2.5} and sampling.seed == 2**64 - 1
    assert (list(sampling.stop), list(sampling.stop_token_ids)) == (["x", "y"], [7])
    assert sampling.ignore_eos and sampling.include_stop and not sampling.skip_special_tokens
    assert (sampling.min_tokens, sampling.max_tokens, sampling.n, sampling.logprobs) == (1, 3, 2, 0)
    assert (request.priority, request.cache_salt, request.model) == (4, "s", "toy")
    assert 0 < request.timeout <= 600


def test_unset_fields_stay_unset(http: httpx2.Client, world: World) -> None:
    post(http, "chat/completions", {"messages": CHAT["messages"], "temperature": None})
    post(http, "completions", {"prompt": "ab"})
    chat, completion = world.gateway.requests
    assert chat.sampling.ListFields() == [] and chat.model == ""
    assert [field.name for field, _ in completion.sampling.ListFields()] == ["max_tokens"]
    assert completion.sampling.max_tokens == 16


def test_messages_as_clients_send_them_back(http: httpx2.Client, world: World) -> None:
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind"}]},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "Go"},
    ]
    post(http, "chat/completions", {"messages": turns})
    said = [(m.role, m.content) for m in world.gateway.requests[0].chat.messages]
    assert said == [("system", "Be\nkind"), ("user", "Hi"), ("assistant", "Yes"), ("user", "Go")]

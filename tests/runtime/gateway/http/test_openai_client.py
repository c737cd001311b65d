"""The official client works unchanged, blocking and asyncio: chats, completions, streams, models, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import openai
import pytest

from tests.runtime.gateway.http.fake_gateway import CONTEXT, World, reply

CHAT = "user:Hi"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(world: World, url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="toy", messages=MESSAGES)  # type: ignore[arg-type]
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "toy"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", reply(CHAT, 0), "stop")
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens == len(CHAT) and answer.usage.completion_tokens == len(reply(CHAT, 0))
    assert answer.usage.prompt_tokens_details.cached_tokens == len(CHAT) // 2


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="toy", messages=MESSAGES, stream=True, stream_options=options, n=2)  # type: ignore[call-overload]
    chunks = list(stream)
    for index in range(2):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == reply(CHAT, index)
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(reply(CHAT, 0)) + len(reply(CHAT, 1))


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="toy", prompt=["ab", "cd"], n=2, max_tokens=3)
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [
        (2 * prompt + sample, reply(text, sample)[:3], "length")
        for prompt, text in enumerate(("ab", "cd"))
        for sample in range(2)
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 12, 16)


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="toy", prompt="ab", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == reply("ab", 0)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    card = client.models.retrieve("toy")
    assert card.owned_by == "triptych" and card.model_extra == {"max_model_len": CONTEXT}
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("code", "error", "status"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, openai.RateLimitError, 429),
        (grpc.StatusCode.UNAVAILABLE, openai.InternalServerError, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, openai.InternalServerError, 504),
        (grpc.StatusCode.INTERNAL, openai.InternalServerError, 500),
        (grpc.StatusCode.UNAUTHENTICATED, openai.InternalServerError, 502),
        (grpc.StatusCode.UNKNOWN, openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_its_status(
    client: openai.OpenAI,
    world: World,
    code: grpc.StatusCode,
    error: type[openai.APIStatusError],
    status: int,
    stream: bool,
) -> None:
    world.gateway.fail_after = (0, code, "it did not work", 2.5)
    with pytest.raises(error) as caught:
        client.chat.completions.create(model="toy", messages=MESSAGES, stream=stream)  # type: ignore[call-overload]
    assert caught.value.status_code == status
    if status in (429, 503):
        headers = caught.value.response.headers
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2500")


def test_a_failure_in_the_middle_of_a_stream_is_an_error_and_no_end(client: openai.OpenAI, world: World) -> None:
    world.gateway.fail_after = (3, grpc.StatusCode.UNAVAILABLE, "the instance died", None)
    text = ""
    with pytest.raises(openai.APIError, match="the instance died") as caught:
        stream: Any = client.chat.completions.create(model="toy", messages=MESSAGES, stream=True)  # type: ignore[call-overload]
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == reply(CHAT, 0)[:3]
    assert isinstance(caught.value.body, dict) and caught.value.body["code"] == "service_unavailable"


def test_the_client_retries_what_is_overloaded(world: World, url: str) -> None:
    world.gateway.fail_after = (0, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", 0.05)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.completions.create(model="toy", prompt="ab")
    assert len(world.gateway.requests) == 3


def test_wrong_fields_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="toy", messages=MESSAGES, temperature=-1)  # type: ignore[call-overload]
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=MESSAGES)  # type: ignore[call-overload]
    assert missing.value.code == "model_not_found"


def test_asyncio(world: World, url: str) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            whole: Any
            whole, *texts = await asyncio.gather(
                client.chat.completions.create(model="toy", messages=MESSAGES),  # type: ignore[call-overload]
                *(streamed(client, f"p{i}") for i in range(8)),
            )
            assert whole.choices[0].message.content == reply(CHAT, 0)
            assert texts == [reply(f"p{i}", 0) for i in range(8)]
            assert [model.id async for model in client.models.list()] == ["toy"]
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="toy", prompt="x" * CONTEXT)

    async def streamed(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(model="toy", prompt=prompt, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    asyncio.run(main())

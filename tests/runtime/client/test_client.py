"""Both clients against the real gateway (with fake scheduler and workers)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import pytest

from tests.runtime.gateway.calls import PATIENCE, run, until
from tests.runtime.gateway.toy_cluster import EOS, MODEL_LEN, TOKENIZER, Cluster, cluster, never, reply
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import AsyncClient, Client, Result, Token
from triptych.runtime.client.requests import generate_request
from triptych.runtime.core.errors import (
    CancelledByClientError,
    DeadlineError,
    InstanceLostError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Status,
    TriptychError,
)
from triptych.runtime.wire.auth import bearer_interceptor

T = TypeVar("T")
EXPECTED = reply(TOKENIZER.encode("hello"), 0)


def with_client(body: Callable[[Client], T], prepare: Callable[[Cluster], None] | None = None) -> T:
    """Run blocking `body` in a thread beside the cluster."""

    async def main() -> T:
        async with cluster() as c:
            if prepare is not None:
                prepare(c)

            def use() -> T:
                with Client(c.address) as client:
                    return body(client)

            return await asyncio.to_thread(use)

    return run(main())


def play_never(c: Cluster) -> None:
    c.scheduler.script = never


def test_generate_yields_chunks_whose_sum_is_the_result():
    def body(client: Client) -> None:
        stream = client.generate("hello", request_id="mine")
        chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == stream.result.text == EXPECTED
        assert [t.id for chunk in chunks for t in chunk.tokens] == stream.result.samples[0].token_ids
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
        assert stream.result.request_id == "mine"

    with_client(body)


def test_complete_returns_texts_tokens_usage_timings_and_logprobs():
    def body(client: Client) -> None:
        result = client.complete(
            messages=[{"role": "user", "content": "hi"}], n=2, stop="é", logprobs=1, prompt_logprobs=0, timeout=20
        )
        assert isinstance(result, Result) and result.complete
        prompt = TOKENIZER.encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
        for index, sample in enumerate(result.samples):
            assert sample.text == reply(prompt, index).split("é")[0]
            assert (sample.finish_reason, sample.matched) == ("stop", "é")
        first = result.samples[0].tokens[0]
        assert first == Token(ord("s"), len(prompt), -1.15, "s", ((0, -0.5, "\x00"),))
        assert result.prompt_tokens == len(prompt) == len(result.prompt_logprobs)
        assert result.usage is not None and result.timings is not None
        assert result.usage.completion_tokens == sum(len(s.tokens) for s in result.samples)

    with_client(body)


def test_token_ids_and_stop_tokens():
    def body(client: Client) -> None:
        result = client.complete(token_ids=[1, 2, 3], stop_token_ids=[ord(":")], temperature=0)
        assert (result.text, result.samples[0].matched) == ("s0", ord(":"))
        ended = client.complete(token_ids=[1, 2, 3]).samples[0]
        assert (ended.token_ids[-1], ended.matched) == (EOS, None)

    with_client(body)


def test_the_other_methods():
    def body(client: Client) -> None:
        client.wait_ready(PATIENCE)
        ids = client.tokenize("hello")
        assert ids == TOKENIZER.encode("hello") and client.detokenize(ids) == "hello"
        assert client.tokenize(messages=[{"role": "user", "content": "x"}], add_generation_prompt=False)[0] == 257
        assert client.model_info().max_model_len == MODEL_LEN
        assert client.server_info().topology == "1P1D"
        assert client.loads().instances[0].id == "p0"
        with pytest.raises(NotFoundError, match="no running request has the id 'x'"):
            client.abort("x")

    with_client(body)


def test_errors_are_the_servers_own_types_with_message_and_retry_hint():
    async def main() -> None:
        async with cluster(max_in_flight=1, retry_after=1.5) as c:
            c.scheduler.script = never

            def use() -> None:
                with Client(c.address) as client:
                    with pytest.raises(InvalidRequestError, match="temperature is -1.0"):
                        client.complete("hello", temperature=-1.0)
                    running = client.generate("hello", request_id="mine")
                    assert next_response(running) == "prompt"
                    with pytest.raises(OverloadedError, match="1 requests are open") as caught:
                        client.complete("hello")
                    assert caught.value.retry_after == 1.5
                    client.abort("mine")
                    with pytest.raises(CancelledByClientError, match="'mine' was aborted"):
                        list(running)
                    with pytest.raises(DeadlineError, match="the deadline passed after 0 tokens"):
                        client.complete("hello", timeout=1.0)

            await asyncio.to_thread(use)

    run(main())


def next_response(stream) -> str | None:
    """The kind of the next message, below the level of chunks."""
    response = next(stream._call)
    stream.result.feed(response)
    return response.WhichOneof("kind")


def test_closing_a_stream_cancels_the_generation():
    async def main() -> None:
        async with cluster() as c:
            c.scheduler.script = never

            def use() -> None:
                with Client(c.address) as client, client.generate("hello") as stream:
                    next_response(stream)

            await asyncio.to_thread(use)
            await until(lambda: len(c.scheduler.orders) == 1)
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            async with AsyncClient(c.address) as client:
                async with client.generate("hello"):
                    await until(lambda: len(c.scheduler.orders) == 2)
                await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)

    run(main())


def test_the_async_client_does_the_same():
    async def main() -> None:
        async with cluster() as c, AsyncClient(c.address) as client:
            await client.wait_ready(PATIENCE)
            stream = client.generate("hello", max_tokens=5)
            assert "".join([chunk.text async for chunk in stream]) == EXPECTED[:5]
            results = await asyncio.gather(*(client.complete("hello") for _ in range(5)))
            assert {result.text for result in results} == {EXPECTED}
            assert await client.detokenize(await client.tokenize("hello")) == "hello"
            assert (await client.model_info()).model == "toy"
            assert (await client.server_info()).version == "0.1.0"
            assert (await client.loads()).active == 4
            with pytest.raises(NotFoundError):
                await client.abort("x")
            with pytest.raises(InvalidRequestError, match="n is 0"):
                await client.complete("hello", n=0)

    run(main())


def test_a_bearer_token_opens_the_server_and_nothing_else_does():
    async def main() -> None:
        async with cluster(interceptors=[bearer_interceptor("secret")]) as c:

            def use() -> None:
                with Client(c.address, token="secret") as client:
                    client.wait_ready(PATIENCE)
                    assert client.complete("hello").text == EXPECTED
                for token in (None, "other"):
                    with Client(c.address, token=token) as client:
                        client.wait_ready(PATIENCE)  # health needs no token
                        for call in (client.model_info, lambda client=client: client.complete("hello")):
                            with pytest.raises(TriptychError, match="bearer token") as caught:
                                call()
                            assert caught.value.status is Status.UNAUTHENTICATED

            await asyncio.to_thread(use)

    run(main())


def test_nobody_at_the_address():
    with Client("127.0.0.1:1") as client:
        with pytest.raises(InstanceLostError):
            client.model_info()
        with pytest.raises(DeadlineError, match="127.0.0.1:1 was not ready after 0.2 s"):
            client.wait_ready(0.2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "input is not given; expected exactly one of"),
        ({"prompt": "x", "token_ids": [1]}, "input is prompt and token_ids"),
        ({"prompt": "x", "sampling": {"temprature": 1.0}}, "temprature is no sampling field; expected one of add"),
        ({"prompt": "x", "sampling": {"max_tokens": -1}}, "max_tokens is -1"),
        ({"prompt": "x", "sampling": {"temperature": "hot"}}, "temperature is 'hot'"),
        ({"token_ids": [-1]}, r"token_ids\[0\] is -1; expected a token id"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has the keys \['role'\]"),
        ({"prompt": "\ud800"}, "cannot be encoded"),
    ],
)
def test_what_no_message_can_say_is_refused_before_the_call(arguments: dict, message: str):
    with pytest.raises(InvalidRequestError, match=message.replace("expected one of add", "expected one of")):
        generate_request(**arguments)


def test_keywords_become_fields_and_none_is_unset():
    request = generate_request(
        "x", timeout=3, priority=2, sampling={"stop": "a", "logit_bias": {5: 1.0}, "seed": 0, "top_p": None}
    )
    assert request == pb.GenerateRequest(
        prompt="x", timeout=3, priority=2, sampling=pb.SamplingOptions(stop=["a"], logit_bias={5: 1.0}, seed=0)
    )
    assert generate_request("x", sampling={"stop": ["a", "b"]}).sampling.stop == ["a", "b"]
    assert not generate_request("x").sampling.HasField("seed")


def test_a_stream_cut_before_its_summary_is_an_error():
    result = Result().fold([pb.GenerateResponse(delta=pb.Delta(text="half"))])
    with pytest.raises(InstanceLostError, match="without its summary"):
        result.check_complete()


def test_the_client_imports_without_jax_and_server_packages():
    program = (
        "import sys, triptych.runtime.client\n"
        "sys.exit(', '.join({'jax', 'jinja2', 'tokenizers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=100, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

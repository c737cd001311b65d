"""The HTTP server as a process of its own before a real cluster of the toy model: the same answers as over gRPC, nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.system.deployment import leaks
from tests.system.toy import ToySetup
from triptych.runtime.client import Client
from triptych.runtime.cluster.local import LocalCluster
from triptych.tools import http
from triptych.tools.supervisor import Supervisor

TOKEN = "s3cret"
PROMPT = list(range(100, 150))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with ToySetup("1P1D", max_num_seqs=4).cluster(token=TOKEN) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def url(cluster: LocalCluster) -> Iterator[str]:
    """`triptych http`, ended as `serve` would end it."""
    with Supervisor() as supervisor:
        argv = http.command_line(cluster.address, "127.0.0.1", 0)
        supervisor.start("http", argv, os.environ | {"TRIPTYCH_API_KEY": TOKEN})
        yield supervisor.wait_ready(200)["http"]["url"]
        assert supervisor.stop(60) == {"http": 0}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.mark.limit(300)
def test_answers_are_those_of_grpc(cluster: LocalCluster, client: openai.OpenAI) -> None:
    with Client(cluster.address, TOKEN) as direct:
        wanted = direct.complete(token_ids=PROMPT, max_tokens=12, temperature=0.8, seed=5, n=2, logprobs=2)
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "seed": 5, "n": 2, "logprobs": 2}
    whole = client.completions.create(model="toy", prompt=PROMPT, **options)
    assert [(c.text, c.finish_reason) for c in whole.choices] == [(s.text, s.finish_reason) for s in wanted.samples]
    assert whole.usage is not None and wanted.usage is not None
    assert whole.usage.completion_tokens == wanted.usage.completion_tokens
    for choice, sample in zip(whole.choices, wanted.samples, strict=True):
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx([token.logprob for token in sample.tokens])
    streamed = ["", ""]
    for chunk in client.completions.create(model="toy", prompt=PROMPT, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [sample.text for sample in wanted.samples]


@pytest.mark.limit(300)
def test_chats_and_echoes(cluster: LocalCluster, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    with Client(cluster.address, TOKEN) as direct:
        wanted = direct.complete(messages=messages, max_tokens=8, temperature=0)
        scored = direct.complete("Hello", max_tokens=1, temperature=0, prompt_logprobs=0)
    answer = client.chat.completions.create(model="toy", messages=messages, max_completion_tokens=8, temperature=0)
    assert answer.choices[0].message.content == wanted.text
    echo = client.completions.create(model="toy", prompt="Hello", max_tokens=0, echo=True, logprobs=0)
    logprobs = echo.choices[0].logprobs
    assert echo.choices[0].text == "Hello" and logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.tokens == list("Hello") and logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx([token.logprob for token in scored.prompt_logprobs[1:]])


@pytest.mark.limit(300)
def test_errors_of_the_gateway_name_the_field(client: openai.OpenAI, url: str) -> None:
    for field, value in (("top_p", 7), ("min_tokens", 500), ("logit_bias", {"999": 1})):
        body: dict[str, Any] = {field: value}
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="toy", prompt="ab", extra_body=body)
        assert caught.value.param == field, caught.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="toy", prompt=PROMPT * 10)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as other:
        other.models.list()
    assert httpx2.get(f"{url}/ready", timeout=60).status_code == 200


@pytest.mark.limit(300)
def test_a_client_that_leaves_frees_everything(cluster: LocalCluster, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="toy", prompt=PROMPT, max_tokens=100, n=4, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 100
    while any(leaks(state) for state in cluster.snapshots()):  # type: ignore[arg-type]  # a snapshot has what leaks() reads
        assert time.monotonic() < until
        time.sleep(0.05)

"""The unary methods, and statuses between typed errors and the wire."""

from __future__ import annotations

import subprocess
import sys

import grpc
import pytest

from tests.runtime.gateway.calls import run
from tests.runtime.gateway.toy_cluster import MODEL_LEN, TOKENIZER, cluster
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import ConfigError, OverloadedError, Status, TriptychError
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.wire.status import CODES, error_from_call, trailing_metadata


def test_model_and_server_are_described():
    async def body():
        async with cluster() as c:
            model = await c.stub.GetModelInfo(pb.GetModelInfoRequest())
            assert (model.model, model.architecture, model.revision) == ("toy", "LlamaForCausalLM", "r1")
            assert (model.vocab_size, model.max_model_len, model.parameters) == (260, MODEL_LEN, 7)
            assert tuple(model.eos_token_ids) == TOKENIZER.eos_ids and model.has_chat_template
            server = await c.stub.GetServerInfo(pb.GetServerInfoRequest())
            assert (server.version, server.topology, server.config_json) == ("0.1.0", "1P1D", '{"model": "toy"}')
            assert server.uptime > 0

    run(body())


def test_loads_are_the_schedulers_and_unavailable_without_one():
    async def body():
        async with cluster() as c:
            loads = await c.stub.GetLoads(pb.GetLoadsRequest())
            assert (loads.queued, loads.active) == (3, 4)
            assert loads.instances[1] == pb.InstanceOccupancy(
                id="d0",
                roles=["decode"],
                tp=2,
                running=1,
                waiting=2,
                free_pages=30,
                num_pages=64,
                free_slots=5,
                staged=6,
            )

    run(body())


def test_tokenize_and_detokenize_are_each_others_inverse():
    async def body():
        async with cluster() as c:
            text = "héllo 😀"
            ids = (await c.stub.Tokenize(pb.TokenizeRequest(text=text))).ids
            assert list(ids) == TOKENIZER.encode(text)
            assert (await c.stub.Detokenize(pb.DetokenizeRequest(ids=ids))).text == text
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")], add_generation_prompt=False)
            ids = (await c.stub.Tokenize(pb.TokenizeRequest(chat=chat))).ids
            assert (await c.stub.Detokenize(pb.DetokenizeRequest(ids=ids))).text == "<|im_start|>user\nhi<|im_end|>\n"
            bare = await c.stub.Detokenize(pb.DetokenizeRequest(ids=ids, skip_special_tokens=True))
            assert bare.text == "user\nhi\n"
            assert not (await c.stub.Tokenize(pb.TokenizeRequest(text=""))).ids

    run(body())


@pytest.mark.parametrize(
    "method, request_, message",
    [
        ("Tokenize", pb.TokenizeRequest(), "input is not set; expected text or chat"),
        ("Tokenize", pb.TokenizeRequest(chat=pb.Chat()), "chat: the conversation has no messages"),
        ("Detokenize", pb.DetokenizeRequest(ids=[1, 260]), "ids[1] is 260; expected a token id in [0, 260)"),
    ],
)
def test_bad_input_of_unary_methods(method: str, request_: object, message: str):
    async def body():
        async with cluster() as c:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(c.stub, method)(request_)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert message in (caught.value.details() or "")

    run(body())


def test_an_unexpected_error_is_internal_and_keeps_its_text_to_itself(monkeypatch: pytest.MonkeyPatch):
    async def body():
        async with cluster() as c:
            monkeypatch.setattr("triptych.runtime.gateway.service.chat_ids", lambda *_: 1 / 0)
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await c.stub.Tokenize(pb.TokenizeRequest(chat=chat))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "ZeroDivisionError" in (caught.value.details() or "")
            assert "division by" not in (caught.value.details() or "")

    run(body())


def test_every_status_survives_the_wire():
    for status in Status:
        if status is Status.OK:
            continue
        error = error_from_call(CODES[status], "why", (("other", "x"), ("retry-after", "2.5")))
        assert (error.status, error.message, error.retry_after) == (status, "why", 2.5)
    assert type(error_from_call(grpc.StatusCode.RESOURCE_EXHAUSTED, "x", None)) is OverloadedError
    unknown = error_from_call(grpc.StatusCode.UNKNOWN, None, ())
    assert type(unknown) is TriptychError and unknown.status is Status.INTERNAL and "UNKNOWN" in unknown.message
    assert trailing_metadata(OverloadedError("full", retry_after=0.25)) == (("retry-after", "0.25"),)
    assert error_from_call(grpc.StatusCode.UNAVAILABLE, "x", (("retry-after", "soon"),)).retry_after is None


def test_limits_must_be_positive():
    with pytest.raises(ConfigError, match="gateway.max_in_flight is 0; expected a positive number"):
        GatewayConfig("x:1", max_in_flight=0)
    with pytest.raises(ConfigError, match="max_prompt_tokens is 0"):
        GatewayConfig("x:1", max_prompt_tokens=0)


def test_the_gateway_process_does_not_import_jax():
    program = "import sys, triptych.runtime.gateway.server; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=100, check=False).returncode == 0

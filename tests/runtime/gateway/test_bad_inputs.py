"""Every bad input is refused with its status and a message that names the field, the value and what was expected; nothing is submitted."""

from __future__ import annotations

import math

import grpc
import pytest

from tests.runtime.gateway.calls import ask, finish, run, until
from tests.runtime.gateway.toy_cluster import MODEL_LEN, Order, cluster, never, serve_well, toy_model
from triptych.models.text.chat import ChatTemplate
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import Status

INVALID, NOT_FOUND, TOO_LATE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


def chat(*roles: str, **fields: bool) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role=role, content="hi") for role in roles], **fields)


def sampling(**fields: object) -> pb.GenerateRequest:
    return ask("hello", sampling=fields)


ids = pb.TokenIds

ROWS = {
    "no input": (pb.GenerateRequest(), INVALID, "input is not set; expected one of prompt, chat, token_ids"),
    "empty prompt": (ask(""), INVALID, "prompt is empty"),
    "no token ids": (ask(token_ids=ids()), INVALID, "token_ids is empty"),
    "token id out of range": (
        ask(token_ids=ids(ids=[1, 260])),
        INVALID,
        "token_ids[1] is 260; expected a token id in [0, 260)",
    ),
    "too long": (ask("x" * MODEL_LEN), INVALID, f"the prompt has {MODEL_LEN} tokens; expected at most {MODEL_LEN - 1}"),
    "unknown model": (ask(model="gpt"), NOT_FOUND, "model 'gpt' is not served here; expected 'toy'"),
    "negative temperature": (sampling(temperature=-1), INVALID, "temperature is -1.0; expected in [0, 100]"),
    "temperature is not a number": (sampling(temperature=math.nan), INVALID, "temperature is nan"),
    "infinite temperature": (sampling(temperature=math.inf), INVALID, "temperature is inf"),
    "top_p 0": (sampling(top_p=0), INVALID, "top_p is 0.0; expected in (0, 1]"),
    "top_p above 1": (sampling(top_p=1.5), INVALID, "top_p is 1.5"),
    "top_k below -1": (sampling(top_k=-2), INVALID, "top_k is -2; expected 0 (off) or positive"),
    "min_p above 1": (sampling(min_p=2), INVALID, "min_p is 2.0"),
    "presence_penalty": (sampling(presence_penalty=3), INVALID, "presence_penalty is 3.0; expected in [-2, 2]"),
    "frequency_penalty": (sampling(frequency_penalty=-3), INVALID, "frequency_penalty is -3.0"),
    "repetition_penalty 0": (sampling(repetition_penalty=0), INVALID, "repetition_penalty is 0.0"),
    "n 0": (sampling(n=0), INVALID, "n is 0; expected in [1, 128]"),
    "n too large": (sampling(n=129), INVALID, "n is 129"),
    "max_tokens 0": (sampling(max_tokens=0), INVALID, "max_tokens is 0; expected at least 1"),
    "min above max": (
        sampling(min_tokens=9, max_tokens=8),
        INVALID,
        "min_tokens is 9; expected at most max_tokens (8)",
    ),
    "min above context": (sampling(min_tokens=124, max_tokens=200), INVALID, "min_tokens is 124; expected at most 123"),
    "empty stop": (sampling(stop=[""]), INVALID, "stop string length is 0"),
    "long stop": (sampling(stop=["x" * 1025]), INVALID, "stop string length is 1025"),
    "too many stops": (sampling(stop=["x"] * 17), INVALID, "stop is 17; expected at most 16 strings"),
    "stop id out of range": (sampling(stop_token_ids=[260]), INVALID, "stop_token_ids is 260; expected in [0, 260)"),
    "too many stop ids": (sampling(stop_token_ids=[1] * 65), INVALID, "stop_token_ids is 65; expected at most 64"),
    "bias id out of range": (sampling(logit_bias={260: 1.0}), INVALID, "logit_bias token id is 260"),
    "bias too large": (sampling(logit_bias={1: 101.0}), INVALID, "logit_bias value is 101.0"),
    "bias not a number": (sampling(logit_bias={1: math.nan}), INVALID, "logit_bias value is nan"),
    "too many biases": (sampling(logit_bias={i % 300: 0.0 for i in range(301)} | {301: 0.0}), INVALID, "logit_bias"),
    "logprobs too large": (sampling(logprobs=21), INVALID, "logprobs is 21; expected in [0, 20]"),
    "prompt_logprobs too large": (sampling(prompt_logprobs=21), INVALID, "prompt_logprobs is 21"),
    "no messages": (ask(chat=chat()), INVALID, "chat: the conversation has no messages"),
    "unknown role": (ask(chat=chat("wizard")), INVALID, "chat: message 0 has role 'wizard'; expected one of system"),
    "assistant last": (
        ask(chat=chat("user", "assistant", add_generation_prompt=True)),
        INVALID,
        "chat.add_generation_prompt",
    ),
    "expired": (ask(timeout=0), TOO_LATE, "the deadline had passed when the request arrived"),
    "negative timeout": (ask(timeout=-1), INVALID, "timeout is -1.0; expected a finite number of seconds"),
    "timeout is not a number": (ask(timeout=math.nan), INVALID, "timeout is nan"),
    "long id": (ask(request_id="x" * 129), INVALID, "request_id is"),
    "unprintable id": (ask(request_id="a\nb"), INVALID, "request_id is 'a\\nb'"),
    "long salt": (ask(cache_salt="x" * 1025), INVALID, "cache_salt has 1025 characters"),
}


def test_every_bad_input_is_refused_with_its_status_and_reason():
    async def body():
        async with cluster() as c:
            for name, (request, code, message) in ROWS.items():
                outcome = await finish(c.stub.Generate(request))
                assert (name, outcome.code) == (name, code), outcome.details
                assert message in outcome.details, name
                assert not outcome.responses
            assert not c.scheduler.orders
            assert sum(c.gateway.counts.ended.values()) == len(ROWS)
            assert (await finish(c.stub.Generate(ask("still serving")))).code is grpc.StatusCode.OK

    run(body())


def test_limits_of_the_gateway_are_named():
    async def body():
        async with cluster(max_prompt_tokens=10, max_prompt_chars=50) as c:
            outcome = await finish(c.stub.Generate(ask("x" * 11)))
            assert (outcome.code, outcome.details) == (
                INVALID,
                "the prompt has 11 tokens; expected at most max_prompt_tokens (10)",
            )
            outcome = await finish(c.stub.Generate(ask("x" * 51)))
            assert (outcome.code, outcome.details) == (INVALID, "prompt has 51 characters; expected at most 50")

    run(body())


def test_a_model_without_tokenizer_or_template_says_so():
    async def body():
        async with cluster(toy_model(tokenizer=None, chat_template=None)) as c:
            for request in (ask("text"), ask(chat=chat("user"))):
                outcome = await finish(c.stub.Generate(request))
                assert outcome.code is INVALID and "toy has no tokenizer; expected token_ids" in outcome.details
            outcome = await finish(c.stub.Generate(ask(token_ids=ids(ids=[1]), sampling={"stop": ["a"]})))
            assert outcome.code is INVALID and "use stop_token_ids" in outcome.details
            outcome = await finish(c.stub.Generate(ask(token_ids=ids(ids=[1]))))
            assert outcome.code is grpc.StatusCode.OK and outcome.text() == "" and len(outcome.tokens()) > 10
        async with cluster(toy_model(chat_template=None)) as c:
            outcome = await finish(c.stub.Generate(ask(chat=chat("user"))))
            assert outcome.code is INVALID and "toy has no chat template" in outcome.details

    run(body())


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ undefined_name.attribute }}",
    ],
)
def test_a_hostile_chat_template_is_an_invalid_argument(template: str):
    async def body():
        async with cluster(toy_model(chat_template=ChatTemplate(template))) as c:
            outcome = await finish(c.stub.Generate(ask(chat=chat("user"))))
            assert outcome.code is INVALID and outcome.details.startswith("chat: the model's chat template")

    run(body())


def test_the_reason_of_a_huge_bad_value_is_shortened_to_what_a_status_can_carry():
    async def body():
        async with cluster() as c:
            request = ask(chat=pb.Chat(messages=[pb.ChatMessage(role="é" * 100_000, content="hi")]))
            outcome = await finish(c.stub.Generate(request))
            assert outcome.code is INVALID
            assert outcome.details.startswith("chat: message 0 has role 'ééé") and outcome.details.endswith("...")

    run(body())


def test_text_that_is_not_utf8_is_an_invalid_argument():
    broken = b"\x0a\x02\xff\xfe"  # field 1, two bytes that begin no character

    async def body():
        async with cluster() as c:
            outcome = await finish(c.channel.unary_stream("/triptych.v1.Inference/Generate")(broken))
            assert (outcome.code, outcome.responses) == (INVALID, [])
            assert "not a valid GenerateRequest" in outcome.details
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await c.channel.unary_unary("/triptych.v1.Inference/Tokenize")(broken)
            assert caught.value.code() is INVALID
            assert "not a valid TokenizeRequest" in (caught.value.details() or "")

    run(body())


def test_a_message_of_100_megabytes_is_refused_by_size():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("x" * 100_000_000)))
            assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in outcome.details

    run(body())


def test_a_running_request_id_cannot_be_used_twice():
    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            first = c.stub.Generate(ask(request_id="mine"))
            await until(lambda: len(c.scheduler.orders) == 1)
            outcome = await finish(c.stub.Generate(ask(request_id="mine")))
            assert outcome.code is INVALID
            assert "request_id 'mine' belongs to a running request" in outcome.details
            first.cancel()
            await until(lambda: c.gateway.open_requests == 0)
            c.scheduler.script = serve_well
            assert (await finish(c.stub.Generate(ask(request_id="mine")))).code is grpc.StatusCode.OK

    run(body())


def test_more_requests_than_the_gateway_takes_are_refused_with_a_retry_hint():
    async def body():
        async with cluster(max_in_flight=2, retry_after=0.5) as c:

            async def held(order: Order) -> None:
                await order.cancelled.wait()

            c.scheduler.script = held
            running = [c.stub.Generate(ask()) for _ in range(2)]
            await until(lambda: c.gateway.open_requests == 2)
            outcome = await finish(c.stub.Generate(ask()))
            assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert outcome.retry_after == "0.5"
            assert "2 requests are open" in outcome.details
            for call in running:
                call.cancel()
            await until(lambda: c.gateway.open_requests == 0)
            assert c.gateway.counts.ended == {Status.CANCELLED: 2, Status.RESOURCE_EXHAUSTED: 1}

    run(body())

"""What a client gets for good requests."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import grpc
import pytest

from tests.runtime.gateway.calls import PATIENCE, ask, finish, run, until
from tests.runtime.gateway.toy_cluster import (
    CACHED,
    EOS,
    MODEL_LEN,
    TOKENIZER,
    Order,
    cluster,
    generation,
    never,
    reply,
    toy_model,
)
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import Status
from triptych.runtime.gateway.model import SamplingDefaults

HELLO = TOKENIZER.encode("hello")


def text_of(prompt: str, sample: int = 0) -> str:
    return reply(TOKENIZER.encode(prompt), sample)


def test_a_request_streams_text_tokens_completion_and_summary_in_order():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("hello", request_id="mine")))
            assert outcome.code is grpc.StatusCode.OK
            kinds = [r.WhichOneof("kind") for r in outcome.responses]
            assert kinds[0] == "prompt" and kinds[-2:] == ["completion", "summary"] and set(kinds[1:-2]) == {"delta"}
            assert outcome.of("prompt")[0].request_id == "mine"
            assert outcome.of("prompt")[0].prompt_tokens == len(HELLO)
            assert outcome.text() == text_of("hello")
            assert outcome.tokens() == [*TOKENIZER.encode(text_of("hello")), EOS]
            assert outcome.positions() == list(range(len(HELLO), len(HELLO) + len(outcome.tokens())))
            assert outcome.completions[0] == pb.Completion(sample=0, finish_reason="stop")
            assert c.gateway.counts.ended == {Status.OK: 1}
            assert not c.scheduler.last.cancelled.is_set()

    run(body())


def test_usage_counts_every_token_of_every_sample():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("x" * 20, sampling={"n": 3})))
            assert outcome.usage == pb.Usage(
                prompt_tokens=20,
                cached_tokens=CACHED,
                completion_tokens=sum(len(TOKENIZER.encode(text_of("x" * 20, s))) + 1 for s in range(3)),
            )

    run(body())


def test_timings_are_what_the_stages_reported_before_the_last_token():
    async def body():
        async with cluster(final_token_grace=60.0) as c:

            async def script(order: Order) -> None:
                order.place()
                order.progress()
                order.complete()
                await c.noticed()
                await asyncio.sleep(0.2)
                (tokens,) = generation(order.request)
                order.prefill.emit(tokens[0])
                order.prefill.prompt_done(order.request)
                order.decode.emit(*tokens[1:])

            c.scheduler.script = script
            timings = (await finish(c.stub.Generate(ask()))).timings
            assert (timings.prefill_instance, timings.decode_instance, timings.preemptions) == ("p0", "d0", 2)
            assert (timings.queue, timings.prefill, timings.transfer) == (0.75, 2.0, 3.0)
            assert (timings.kv_bytes, timings.pages_pulled, timings.pages_skipped) == (1000, 5, 1)
            assert 0.2 < timings.first_token <= timings.total

    run(body())


def test_every_sample_of_n_has_its_own_text_and_end():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("abc", sampling={"n": 4})))
            for sample in range(4):
                assert outcome.text(sample) == text_of("abc", sample)
            assert sorted(outcome.completions) == [0, 1, 2, 3]

    run(body())


@pytest.mark.parametrize("order_of_stages", ["decode first", "interleaved", "one by one, last first"])
def test_tokens_of_two_instances_are_put_in_order(order_of_stages: str):
    async def script(order: Order) -> None:
        order.place()
        (tokens,) = generation(order.request)
        if order_of_stages == "decode first":
            order.decode.emit(*tokens[1:])
            await asyncio.sleep(0.05)
            order.prefill.emit(tokens[0])
        elif order_of_stages == "interleaved":
            for even, odd in itertools.zip_longest(tokens[::2], tokens[1::2]):
                order.prefill.emit(even)
                if odd is not None:
                    order.decode.emit(odd)
        else:
            for token in reversed(tokens):
                order.decode.emit(token)
        order.prefill.prompt_done(order.request)

    async def body():
        async with cluster() as c:
            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask()))
            assert outcome.text() == text_of("hello")
            assert outcome.positions() == sorted(set(outcome.positions()))
            assert outcome.usage.cached_tokens == len(HELLO) - 1

    run(body())


def test_duplicates_stale_attempts_and_foreign_tokens_change_nothing_and_are_counted():
    async def body():
        async with cluster() as c:

            async def script(order: Order) -> None:
                (tokens,) = generation(order.request)
                order.prefill.emit(tokens[0], tokens[0])
                order.prefill.prompt_done(order.request)
                # What comes after the last token is not looked at any more.
                await until(lambda: c.emitted == 1)
                order.decode.emit(*(dataclasses.replace(t, attempt=2, token=66) for t in tokens[1:4]))
                order.decode.emit(
                    dataclasses.replace(tokens[1], sample=5),
                    dataclasses.replace(tokens[1], position=0),
                    dataclasses.replace(tokens[1], request="no"),
                )
                order.decode.emit(*tokens[:3])
                order.decode.emit(*tokens[3:])

            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask()))
            assert outcome.text() == text_of("hello")
            counts = c.gateway.counts
            assert (counts.duplicates, counts.stale, counts.foreign, counts.unknown) == (2, 3, 2, 1)

    run(body())


@pytest.mark.parametrize("include_stop", [False, True])
def test_a_stop_string_that_spans_tokens_cuts_the_text_exactly(include_stop: bool):
    async def body():
        async with cluster() as c:
            sampling = {"stop": ["😀 the", "nowhere"], "include_stop": include_stop}
            outcome = await finish(c.stub.Generate(ask("hello", sampling=sampling)))
            before = text_of("hello").split("😀")[0]
            assert outcome.text() == (before + "😀 the" if include_stop else before)
            assert outcome.completions[0].matched_stop == "😀 the"
            assert outcome.completions[0].finish_reason == "stop"
            assert outcome.tokens() == TOKENIZER.encode(before + "😀 the")
            assert outcome.usage.completion_tokens == len(outcome.tokens())
            assert not c.scheduler.last.cancelled.is_set()

    run(body())


def test_a_stop_string_in_the_first_token_leaves_an_empty_text():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("hello", sampling={"stop": ["s"]})))
            assert outcome.code is grpc.StatusCode.OK
            assert outcome.text() == "" and outcome.tokens() == [ord("s")]
            assert outcome.completions[0].matched_stop == "s"
            assert outcome.usage.completion_tokens == 1

    run(body())


def test_a_stop_string_within_min_tokens_is_ordinary_text():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("hello", sampling={"stop": ["s0", "end"], "min_tokens": 4})))
            assert outcome.text() == text_of("hello").removesuffix("end")
            assert outcome.completions[0].matched_stop == "end"

    run(body())


def test_a_stop_token_is_emitted_and_its_text_hidden_unless_asked_for():
    async def body():
        async with cluster() as c:
            for include_stop, text in ((False, "s0"), (True, "s0:")):
                sampling = {"stop_token_ids": [ord(":")], "include_stop": include_stop}
                outcome = await finish(c.stub.Generate(ask("hello", sampling=sampling)))
                assert outcome.text() == text
                assert outcome.tokens() == list(b"s0:")
                assert outcome.completions[0].matched_token == ord(":")

    run(body())


def test_max_tokens_one_ends_at_prefill():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("hello", sampling={"max_tokens": 1})))
            assert outcome.text() == "s"
            assert outcome.completions[0].finish_reason == "length"
            assert outcome.usage.completion_tokens == 1

    run(body())


def test_a_character_cut_by_max_tokens_ends_as_a_replacement_character():
    async def body():
        async with cluster() as c:
            cut = len(text_of("hello").split("é")[0].encode()) + 1
            outcome = await finish(c.stub.Generate(ask("hello", sampling={"max_tokens": cut})))
            assert outcome.text() == text_of("hello").split("é")[0] + "\ufffd"
            assert len(outcome.tokens()) == cut

    run(body())


def test_without_max_tokens_the_rest_of_the_context_is_used():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("hello", sampling={"ignore_eos": True})))
            assert outcome.completions[0].finish_reason == "length"
            assert len(outcome.tokens()) == MODEL_LEN - len(HELLO)
            assert "<|im_end|>" not in outcome.text()
            shown = await finish(
                c.stub.Generate(ask("hello", sampling={"ignore_eos": True, "skip_special_tokens": False}))
            )
            assert "the end<|im_end|>s0" in shown.text()

    run(body())


def test_a_stop_string_only_visible_here_ends_the_request_here():
    async def script(order: Order) -> None:  # the instance goes on
        order.prefill.prompt_done(order.request)
        order.decode.emit(*generation(order.request)[0])

    async def body():
        async with cluster() as c:
            c.scheduler.script = script
            sampling = {"ignore_eos": True, "skip_special_tokens": False, "stop": ["<|im_end|>s"]}
            outcome = await finish(c.stub.Generate(ask("hello", sampling=sampling)))
            assert outcome.code is grpc.StatusCode.OK
            assert outcome.text() == text_of("hello")
            assert outcome.completions[0].matched_stop == "<|im_end|>s"
            assert (
                outcome.usage.completion_tokens == len(outcome.tokens()) == len(TOKENIZER.encode(text_of("hello"))) + 2
            )
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            assert "stop string" in c.scheduler.last.cancel_reason

    run(body())


def test_logprobs_carry_the_text_of_every_candidate():
    async def body():
        async with cluster() as c:
            outcome = await finish(c.stub.Generate(ask("hello", sampling={"logprobs": 2, "prompt_logprobs": 0})))
            first = outcome.of("delta")[0].tokens[0]
            assert (first.text, first.logprob) == ("s", -ord("s") / 100)
            assert [(t.token, t.logprob, t.text) for t in first.top] == [(0, -0.5, "\x00"), (1, -1.5, "\x01")]
            prompts = outcome.of("prompt")
            assert [t.text for t in prompts[1].prompt_logprobs][1:] == list("ello")
            assert not prompts[1].prompt_logprobs[0].HasField("logprob")
            plain = await finish(c.stub.Generate(ask("hello")))
            assert not plain.of("delta")[0].tokens[0].HasField("logprob")

    run(body())


def test_chat_goes_through_the_template_and_token_ids_go_as_they_are():
    async def body():
        async with cluster() as c:
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
            await finish(c.stub.Generate(ask(chat=chat)))
            rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
            assert list(c.scheduler.last.request.prompt) == TOKENIZER.encode(rendered, add_special_tokens=False)
            await finish(c.stub.Generate(ask(token_ids=pb.TokenIds(ids=[5, 259]))))
            assert c.scheduler.last.request.prompt == (5, 259)

    run(body())


def test_unset_sampling_fields_take_the_models_defaults_and_zero_means_zero():
    async def body():
        defaults = SamplingDefaults.from_generation_config(
            {"temperature": 0.6, "top_p": 0.9, "top_k": None, "do_sample": True}
        )
        async with cluster(toy_model(defaults=defaults)) as c:
            await finish(c.stub.Generate(ask()))
            unset = c.scheduler.last.request.sampling
            assert (unset.temperature, unset.top_p, unset.top_k, unset.n) == (0.6, 0.9, 0, 1)
            assert unset.max_tokens == MODEL_LEN - len(HELLO)
            await finish(c.stub.Generate(ask()))
            assert c.scheduler.last.request.sampling.seed != unset.seed
            zero = {"temperature": 0.0, "top_k": -1, "top_p": 1.0, "seed": 0, "presence_penalty": 0.5}
            await finish(c.stub.Generate(ask(sampling=zero, priority=-3, cache_salt="s", timeout=30)))
            request = c.scheduler.last.request
            assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.0, 0, 0)
            assert request.sampling.presence_penalty == 0.5
            assert (request.priority, request.cache_salt, request.gateway) == (-3, "s", c.gateway.id)
            left = (request.deadline or 0.0) - asyncio.get_running_loop().time()
            assert 20 < left <= 30

    run(body())


def test_many_requests_at_once_do_not_mix():
    async def body():
        async with cluster() as c:
            prompts = [f"prompt {i}" for i in range(40)]
            outcomes = await asyncio.gather(*(finish(c.stub.Generate(ask(p, sampling={"n": 2}))) for p in prompts))
            for prompt, outcome in zip(prompts, outcomes, strict=True):
                assert [outcome.text(s) for s in range(2)] == [text_of(prompt, s) for s in range(2)]
            assert c.gateway.counts.ended == {Status.OK: 40}

    run(body())


def test_a_client_id_can_be_used_again_and_late_tokens_of_its_first_use_are_dropped():
    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            first = c.stub.Generate(ask("first", request_id="same"))
            await until(lambda: len(c.scheduler.orders) == 1)
            old = c.scheduler.last
            first.cancel()
            await until(lambda: c.gateway.open_requests == 0)
            second = asyncio.ensure_future(finish(c.stub.Generate(ask("hello", request_id="same"))))
            await until(lambda: len(c.scheduler.orders) == 2)
            new = c.scheduler.last
            old.decode.emit(*generation(old.request)[0])
            (tokens,) = generation(new.request)
            new.decode.emit(*tokens)
            new.prefill.prompt_done(new.request)
            assert (await second).text() == text_of("hello")
            assert c.gateway.counts.unknown == len(generation(old.request)[0])

    run(body())

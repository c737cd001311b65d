"""What clients see when instances, token streams or the scheduler are lost under a running request: nothing, or one clear error in bounded time."""

from __future__ import annotations

import asyncio

import grpc

from tests.runtime.gateway.calls import PATIENCE, ask, finish, run, until
from tests.runtime.gateway.toy_cluster import (
    CACHED,
    TOKENIZER,
    Order,
    cluster,
    generation,
    never,
    reply,
    rest,
    serve_well,
)
from triptych.runtime.core.control import Interrupted
from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import SampleState

PROMPT = "hello, is anybody there?"
EXPECTED = reply(TOKENIZER.encode(PROMPT), 0)


def test_an_interrupted_request_goes_on_and_its_client_sees_one_stream():
    async def body():
        async with cluster() as c:

            async def script(order: Order) -> None:
                if order.request.attempt == 3:
                    await serve_well(order)
                    return
                order.place()
                samples = rest(order.request, order.resumed)
                order.prefill.prompt_done(order.request, order.request.attempt)
                order.decode.emit(*(token for tokens in samples for token in tokens[:4]))
                await until(lambda: c.emitted == 8 * order.request.attempt)
                order.interrupt(order.request.attempt + 1)
                await until(lambda: len(order.scheduler.resumed) == order.request.attempt)
                order.decode.emit(*(token for tokens in samples for token in tokens[4:]))  # came too late to count

            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask(PROMPT, sampling={"n": 2, "prompt_logprobs": 0})))
            assert outcome.code is grpc.StatusCode.OK
            assert [outcome.text(0), outcome.text(1)] == [reply(TOKENIZER.encode(PROMPT), s) for s in (0, 1)]
            first = len(TOKENIZER.encode(PROMPT))
            for sample in (0, 1):
                assert outcome.positions(sample) == list(range(first, first + len(outcome.tokens(sample))))
            assert outcome.timings.attempts == 3
            assert outcome.usage.completion_tokens == len(outcome.tokens(0)) + len(outcome.tokens(1))
            assert outcome.usage.cached_tokens == CACHED
            assert len(outcome.of("prompt")) == 2, "prompt_logprobs are sent once"
            assert [len(resume.samples[0].outputs) for resume in c.scheduler.resumed] == [4, 8]

    run(body())


def test_a_token_lost_on_its_way_is_computed_again():
    async def script(order: Order) -> None:
        if order.resumed:  # one stream: between two there may be a gap for longer than gap_timeout
            order.decode.emit(*rest(order.request, order.resumed)[0])
            order.complete()
            return
        (tokens,) = generation(order.request)
        order.prefill.prompt_done(order.request)
        order.decode.emit(*tokens[:2], *tokens[3:])

    async def body():
        async with cluster(gap_timeout=0.2) as c:
            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask(PROMPT)))
            assert outcome.text() == EXPECTED and outcome.timings.attempts == 2

    run(body())


def test_last_tokens_that_never_came_are_computed_again_and_after_enough_attempts_it_is_unavailable():
    async def script(order: Order) -> None:
        order.place()
        (tokens,) = rest(order.request, order.resumed)
        order.prefill.prompt_done(order.request, order.request.attempt)
        order.decode.emit(*tokens[:-1])
        order.complete()

    async def body():
        async with cluster(final_token_grace=0.1, max_attempts=3) as c:
            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask(PROMPT)))
            assert outcome.code is grpc.StatusCode.UNAVAILABLE
            assert "attempt 3, the last one" in outcome.details
            assert outcome.text() == EXPECTED and not outcome.completions
            assert len(c.scheduler.resumed) == 2

    run(body())


def test_a_running_request_outlives_its_scheduler_and_is_declared_to_the_next():
    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            running = asyncio.ensure_future(finish(c.stub.Generate(ask(PROMPT))))
            await until(lambda: len(c.scheduler.orders) == 1)
            order = c.scheduler.last
            (tokens,) = generation(order.request)
            order.prefill.prompt_done(order.request)
            order.decode.emit(*tokens[:2])
            await c.restart_scheduler()
            await until(lambda: bool(c.scheduler.declared))
            assert [request.id for request in c.scheduler.declared] == [order.request.id]
            assert c.scheduler.declared[0].prompt == order.request.prompt and not c.scheduler.orders
            order.decode.emit(*tokens[2:])
            outcome = await running
            assert outcome.text() == EXPECTED and outcome.timings.attempts == 1
            assert (await finish(c.stub.Generate(ask(PROMPT)))).text() == EXPECTED

    run(body())


def test_while_there_is_no_scheduler_tokens_end_requests_and_new_ones_wait():
    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            running = asyncio.ensure_future(finish(c.stub.Generate(ask(PROMPT))))
            await until(lambda: len(c.scheduler.orders) == 1)
            order = c.scheduler.last
            await c.servers[-1].stop(None)
            await until(lambda: not c.gateway.serving)
            waiting = asyncio.ensure_future(finish(c.stub.Generate(ask(PROMPT))))
            gone = c.stub.Generate(ask(PROMPT))
            await until(lambda: c.gateway.open_requests == 3)
            order.prefill.prompt_done(order.request)
            order.decode.emit(*generation(order.request)[0])
            assert (await running).text() == EXPECTED
            gone.cancel()
            await until(lambda: c.gateway.open_requests == 1)
            await c.restart_scheduler()
            assert (await waiting).text() == EXPECTED
            assert len(c.scheduler.orders) == 1 and not c.scheduler.declared

    run(body())


def test_without_a_scheduler_for_too_long_a_request_is_unavailable():
    async def body():
        async with cluster(backoff_initial=30, backoff_max=30, scheduler_patience=0.3) as c:
            c.scheduler.script = never
            running = asyncio.ensure_future(finish(c.stub.Generate(ask())))
            await until(lambda: len(c.scheduler.orders) == 1)
            c.scheduler.break_stream()
            await until(lambda: not c.gateway.serving)
            late = await finish(c.stub.Generate(ask()))
            for outcome in (await running, late):
                assert outcome.code is grpc.StatusCode.UNAVAILABLE
                assert "could not be reached for 0.3 s" in outcome.details and outcome.retry_after == "1"

    run(body())


def test_a_client_that_goes_away_while_its_request_is_interrupted_is_cancelled():
    async def script(order: Order) -> None:
        order.place()
        if not order.scheduler.resumed:
            order.interrupt(2)

    async def body():
        async with cluster() as c:
            c.scheduler.script = script
            call = c.stub.Generate(ask())
            await until(lambda: len(c.scheduler.resumed) == 1)
            order = c.scheduler.last
            assert (order.request.attempt, order.resumed) == (2, (SampleState(0, ()),))
            call.cancel()
            await asyncio.wait_for(order.cancelled.wait(), PATIENCE)

    run(body())


def test_an_interruption_of_a_request_that_is_gone_is_declined():
    async def body():
        async with cluster() as c:
            assert (await finish(c.stub.Generate(ask(PROMPT)))).code is grpc.StatusCode.OK
            order = c.scheduler.last
            c.scheduler.send(Interrupted(order.request.id, 2, "d0 was lost"))
            await asyncio.wait_for(order.cancelled.wait(), PATIENCE)
            assert "not open" in order.cancel_reason

    run(body())


def test_a_gateway_that_stops_cancels_what_it_has_before_it_goes():
    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            running = asyncio.ensure_future(finish(c.stub.Generate(ask())))
            await until(lambda: len(c.scheduler.orders) == 1)
            await c.gateway.stop()
            assert (await running).code is grpc.StatusCode.CANCELLED
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            assert c.gateway.counts.ended == {Status.CANCELLED: 1} and c.scheduler.said_good_bye

    run(body())

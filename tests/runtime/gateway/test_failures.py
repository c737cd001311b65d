"""However a request fails, its stream ends with a status and a reason, once, in bounded time, and the scheduler knows what to cancel."""

from __future__ import annotations

import asyncio
import dataclasses

import grpc
import pytest

from tests.runtime.gateway.calls import PATIENCE, ask, finish, run, until
from tests.runtime.gateway.toy_cluster import Order, cluster, generation, instance, never, reply, serve_well, toy_model
from triptych.models.text.toy import toy_tokenizer
from triptych.proto.v1 import inference_pb2 as pb
from triptych.proto.v1 import inference_pb2_grpc
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.gateway import service

EXPECTED = reply(toy_tokenizer().encode("hello"), 0)


def test_a_client_that_goes_away_is_cancelled_at_the_scheduler():
    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            call = c.stub.Generate(ask())
            await until(lambda: len(c.scheduler.orders) == 1)
            call.cancel()
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            await until(lambda: c.gateway.open_requests == 0)
            assert c.gateway.counts.ended == {Status.CANCELLED: 1}

    run(body())


def test_abort_ends_the_stream_with_cancelled_and_unknown_ids_are_not_found():
    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            outcome = asyncio.ensure_future(finish(c.stub.Generate(ask(request_id="mine"))))
            await until(lambda: len(c.scheduler.orders) == 1)
            await c.stub.Abort(pb.AbortRequest(request_id="mine"))
            ended = await outcome
            assert (ended.code, ended.details) == (grpc.StatusCode.CANCELLED, "request 'mine' was aborted")
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            try:
                await c.stub.Abort(pb.AbortRequest(request_id="mine"))
                raise AssertionError("the second abort must fail")
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND

    run(body())


def test_the_requests_timeout_and_the_calls_deadline_both_end_it(monkeypatch: pytest.MonkeyPatch):
    # The client ends its call at its own deadline; on a busy machine ours comes more than a little later.
    monkeypatch.setattr(service, "CLOCK_SLACK", 0.5)

    async def body():
        async with cluster() as c:
            c.scheduler.script = never
            outcome = await finish(c.stub.Generate(ask(timeout=1.0)))
            assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "the deadline passed after 0 tokens" in outcome.details
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            outcome = await finish(c.stub.Generate(ask(), timeout=1.0))  # time enough to arrive
            assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert len(c.scheduler.orders) == 2
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            await until(lambda: c.gateway.open_requests == 0)
            assert c.gateway.counts.ended == {Status.DEADLINE_EXCEEDED: 2}

    run(body())


def test_a_failure_carries_status_reason_and_retry_hint_after_the_tokens_so_far():
    async def body():
        async with cluster() as c:

            async def script(order: Order) -> None:
                (tokens,) = generation(order.request)
                order.decode.emit(*tokens[:5])
                await until(lambda: c.emitted == 5)
                order.fail(Status.UNAVAILABLE, "instance d0 was lost: heartbeat timeout", 2.5)
                order.fail(Status.INTERNAL, "never sent twice")

            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask()))
            assert outcome.code is grpc.StatusCode.UNAVAILABLE
            assert outcome.details == "instance d0 was lost: heartbeat timeout"
            assert outcome.retry_after == "2.5"
            assert outcome.text() == EXPECTED[:5]
            assert not outcome.of("summary")
            assert not c.scheduler.last.cancelled.is_set()

    run(body())


def test_a_failure_that_races_with_complete_tokens_is_ignored():
    async def body():
        async with cluster(report_grace=60.0) as c:

            async def script(order: Order) -> None:
                (tokens,) = generation(order.request)
                order.decode.emit(*tokens)
                await until(lambda: c.emitted == len(tokens))
                order.fail(Status.DEADLINE_EXCEEDED, "too late")
                await c.noticed()
                order.prefill.prompt_done(order.request)

            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask()))
            assert outcome.code is grpc.StatusCode.OK
            assert outcome.text() == EXPECTED

    run(body())


def test_a_lost_prompt_report_delays_the_end_by_a_bounded_time_and_fails_only_who_asked_for_its_content():
    async def script(order: Order) -> None:
        order.decode.emit(*generation(order.request)[0])

    async def body():
        async with cluster(report_grace=0.2) as c:
            c.scheduler.script = script
            outcome = await finish(c.stub.Generate(ask()))
            assert outcome.code is grpc.StatusCode.OK and outcome.usage.cached_tokens == 0
            outcome = await finish(c.stub.Generate(ask(sampling={"prompt_logprobs": 1})))
            assert outcome.code is grpc.StatusCode.UNAVAILABLE and "prompt_logprobs" in outcome.details
            assert c.gateway.counts.reports_missing == 2

    run(body())


def test_a_broken_token_stream_is_subscribed_again():
    async def body():
        async with cluster() as c:
            c.decode.break_stream()
            await until(lambda: c.decode.subscriptions == 2)
            await until(lambda: c.gateway.serving)
            assert (await finish(c.stub.Generate(ask()))).text() == EXPECTED

    run(body())


def test_tokens_that_a_departing_worker_sent_are_not_lost():
    async def body():
        async with cluster() as c:

            async def script(order: Order) -> None:
                order.prefill.prompt_done(order.request)
                order.scheduler.announce(order.scheduler.instances[:1])
                await until(lambda: not c.gateway.serving)
                order.decode.emit(*generation(order.request)[0])

            c.scheduler.script = script
            assert (await finish(c.stub.Generate(ask()))).text() == EXPECTED

    run(body())


def test_a_defect_in_handling_tokens_ends_the_request_and_not_the_gateway(monkeypatch: pytest.MonkeyPatch):
    async def body():
        async with cluster(final_token_grace=1.0, max_attempts=1) as c:
            with monkeypatch.context() as broken:
                broken.setattr(c.gateway, "on_tokens", lambda tokens: 1 / 0)
                outcome = await finish(c.stub.Generate(ask()))
                assert outcome.code is grpc.StatusCode.UNAVAILABLE and "last tokens were lost" in outcome.details
            await until(lambda: c.gateway.serving)
            assert (await finish(c.stub.Generate(ask()))).text() == EXPECTED

    run(body())


def test_links_follow_the_directory():
    async def body():
        async with cluster(link_linger=0.1) as c:
            both = c.scheduler.instances
            c.scheduler.announce(both[:1])
            await until(lambda: not c.gateway.serving)
            await until(lambda: c.decode.unsubscribed == 1)
            c.scheduler.announce(both)
            await until(lambda: c.gateway.serving)
            assert (c.prefill.subscriptions, c.decode.subscriptions) == (1, 2)
            other = dataclasses.replace(both[1].compatibility, kv_dtype="bfloat16")
            c.scheduler.announce((both[0], dataclasses.replace(both[1], compatibility=other)))
            await until(lambda: not c.gateway.serving)
            c.scheduler.announce((instance("pd", both[0].address, Role.PREFILL, Role.DECODE),))
            await until(lambda: c.gateway.serving)

    run(body())


def test_a_client_that_does_not_read_is_ended_and_cancelled_while_its_write_is_stuck():
    async def script(order: Order) -> None:
        (first,) = generation(order.request, lambda prompt, sample: "x" * 50)
        position, step = len(order.request.prompt), 0
        order.prefill.prompt_done(order.request)
        while not order.cancelled.is_set():
            order.decode.emit(*(first[0]._replace(position=position + step * 50 + i, finish=None) for i in range(50)))
            step += 1
            await asyncio.sleep(0.001)

    async def body():
        async with cluster(toy_model(max_model_len=2**31), max_buffered_tokens=500, drain_grace=0.2) as c:
            c.scheduler.script = script
            narrow = grpc.aio.insecure_channel(
                c.address, options=(("grpc.http2.bdp_probe", 0),)
            )  # a window of 64 KiB that stays
            call = inference_pb2_grpc.InferenceStub(narrow).Generate(ask())  # nobody reads it
            await until(lambda: bool(c.scheduler.orders))
            await asyncio.wait_for(c.scheduler.last.cancelled.wait(), PATIENCE)
            assert "the client reads too slowly" in c.scheduler.last.cancel_reason
            await until(lambda: c.gateway.open_requests == 0)
            assert c.gateway.counts.ended == {Status.RESOURCE_EXHAUSTED: 1}
            outcome = await finish(call)
            assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "the client reads too slowly" in outcome.details
            await narrow.close()

    run(body())


def test_draining_lets_running_requests_end_and_refuses_new_ones():
    async def body():
        async with cluster() as c:
            release = asyncio.Event()

            async def held(order: Order) -> None:
                await release.wait()
                await serve_well(order)

            c.scheduler.script = held
            running = asyncio.ensure_future(finish(c.stub.Generate(ask())))
            await until(lambda: len(c.scheduler.orders) == 1)
            draining = asyncio.ensure_future(c.gateway.drain(PATIENCE))
            await until(lambda: not c.gateway.serving)
            refused = await finish(c.stub.Generate(ask()))
            assert refused.code is grpc.StatusCode.UNAVAILABLE and "shutting down" in refused.details
            assert not draining.done()
            release.set()
            await draining
            assert (await running).text() == EXPECTED

    run(body())


def test_random_client_behaviour_leaves_nothing_open():
    async def body():
        async with cluster() as c:

            async def slow(order: Order) -> None:
                for tokens in zip(*generation(order.request), strict=False):
                    order.decode.emit(*tokens)
                    await asyncio.sleep(0.002)
                order.prefill.prompt_done(order.request)

            c.scheduler.script = slow

            async def client(index: int) -> None:
                call = c.stub.Generate(ask(timeout=0.01 if index % 5 == 0 else 20))
                if index % 3 == 0:
                    await asyncio.sleep(0.001 * index)
                    call.cancel()
                try:
                    await finish(call)
                except asyncio.CancelledError:
                    pass

            await asyncio.gather(*(client(index) for index in range(60)))
            await until(lambda: c.gateway.open_requests == 0)
            # a call that its client cancels before the server began it never arrives
            ended = c.gateway.counts.ended
            assert 40 <= sum(ended.values()) <= 60
            assert ended.keys() <= {Status.OK, Status.CANCELLED, Status.DEADLINE_EXCEEDED}

    run(body())

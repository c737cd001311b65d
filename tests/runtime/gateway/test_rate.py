"""A client that calls too often is refused with a hint; others, and calls that cost nothing, are not."""

from __future__ import annotations

from typing import Any

import grpc

from tests.runtime.gateway.calls import ask, finish, run
from tests.runtime.gateway.toy_cluster import Cluster, cluster, serve_well
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import Status
from triptych.runtime.wire.auth import bearer_interceptor, bearer_metadata
from triptych.runtime.wire.rate import Rate

SLOW = Rate(per_second=0.01, burst=2)


def stub_of(toy: Cluster) -> Any:
    return toy.stub


def test_calls_beyond_the_rate_end_with_resource_exhausted_and_a_hint() -> None:
    async def scenario() -> None:
        async with cluster(rate=SLOW) as toy:
            toy.scheduler.script = serve_well
            for _ in range(2):
                assert (await finish(stub_of(toy).Generate(ask()))).code is grpc.StatusCode.OK
            refused = await finish(stub_of(toy).Generate(ask()))
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.retry_after is not None and 90 < float(refused.retry_after) <= 100
            assert toy.gateway.counts.ended[Status.RESOURCE_EXHAUSTED] == 1
            for call in (
                stub_of(toy).Tokenize(pb.TokenizeRequest(text="a")),
                stub_of(toy).Detokenize(pb.DetokenizeRequest()),
            ):
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await stub_of(toy).GetModelInfo(pb.GetModelInfoRequest())).model

    run(scenario())


def test_clients_with_different_tokens_do_not_pay_for_each_other() -> None:
    async def scenario() -> None:
        async with cluster(rate=SLOW, interceptors=[bearer_interceptor("a", "b")]) as toy:
            ids = pb.DetokenizeRequest(ids=[1])
            for token in ("a", "b"):
                calls = [stub_of(toy).Detokenize(ids, metadata=bearer_metadata(token)) for _ in range(3)]
                codes = [await call.code() for call in calls]
                assert codes.count(grpc.StatusCode.OK) == 2
                assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 1

    run(scenario())


def test_a_new_connection_is_no_new_client() -> None:
    async def scenario() -> None:
        async with cluster(rate=SLOW) as toy:
            codes = []
            for _ in range(3):
                options = (("grpc.use_local_subchannel_pool", 1),)
                async with grpc.aio.insecure_channel(toy.address, options=options) as channel:
                    call = channel.unary_unary("/triptych.v1.Inference/Detokenize")(b"\x0a\x01\x01")
                    codes.append(await call.code())
            assert codes == [grpc.StatusCode.OK] * 2 + [grpc.StatusCode.RESOURCE_EXHAUSTED]

    run(scenario())

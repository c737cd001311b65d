"""Bytes that are no message end a call with INVALID_ARGUMENT, without a traceback, on both services of a worker process."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from triptych.proto.v1 import transfer_pb2, worker_pb2
from triptych.runtime.transfer.service import TransferServicer
from triptych.runtime.wire.handlers import service_handler
from triptych.runtime.worker.outbox import TokenOutboxes
from triptych.runtime.worker.service import WorkerServicer

WORKER = worker_pb2.DESCRIPTOR.services_by_name["Worker"]
TRANSFER = transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]
METHODS = {method.name: method for service in (WORKER, TRANSFER) for method in service.methods}
RUBBISH = {"broken": b"\xff\xff\xff\xff", "not UTF-8": b"\x0a\x02\xc3\x28", "cut off": b"\x0a\x7fab"}
CASES = [(name, kind) for name in METHODS for kind in RUBBISH if name != "Inspect"] + [
    ("Inspect", "broken")  # its request has no fields: others would be those of a newer client
]
WRONG = {
    "Subscribe": worker_pb2.SubscribeRequest(),
    "PutMedia": worker_pb2.PutMediaRequest(),
    "Open": transfer_pb2.OpenRequest(),
    "Fetch": transfer_pb2.FetchRequest(),
    "Release": transfer_pb2.ReleaseRequest(),
}


async def _status(address: str, method, data: bytes) -> grpc.StatusCode:  # type: ignore[no-untyped-def]
    async with grpc.aio.insecure_channel(address) as channel:
        make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
        request: Any = data
        if method.client_streaming:
            make, request = channel.stream_stream, iter([data])
        call = make(f"/{method.containing_service.full_name}/{method.name}")(request, timeout=60)
        try:
            if method.server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def _ask(method, data: bytes) -> grpc.StatusCode:  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(1) as threads:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (
                service_handler(WorkerServicer(TokenOutboxes(), lambda: ()), WORKER),
                service_handler(TransferServicer([], None, threads), TRANSFER),
            )
        )
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            return await _status(address, method, data)
        finally:
            await server.stop(None)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged. Not what grpc says of another test's event loop: one poller serves all loops of a process, and closed ones make it complain."""
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if not line.startswith("Exception in callback PollerCompletionQueue._handle_events")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_bytes_that_are_no_message_are_an_invalid_argument(
    name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(_ask(METHODS[name], RUBBISH[kind])) is grpc.StatusCode.INVALID_ARGUMENT
    assert not said(caplog)


@pytest.mark.parametrize("name", WRONG)
def test_an_empty_message_is_a_typed_error(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        status = asyncio.run(_ask(METHODS[name], WRONG[name].SerializeToString()))
    assert status in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert not said(caplog)

"""One call of any method with any bytes, ended in any way: what a confused, broken or malicious peer might do on a connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor

READS = 50  # messages taken from a stream before the call is left
LIMIT = 1.5  # seconds a call may last; most streams have no end of their own


class Ending(StrEnum):
    """How the caller behaves after what it sent."""

    FINISH = "finish"  # half-closes and reads what comes
    LINGER = "linger"  # leaves its half open and reads what comes
    CANCEL = "cancel"  # cancels after a moment
    DROP = "drop"  # closes the whole connection after a moment


LEFT = "left"
"""The outcome of a call that the caller ended itself."""

CUT = "cut"
"""The outcome of a stream that the server ended while it was written to: gRPC then says INTERNAL here, whatever the server's status was."""
_WRITE_FAILED = (grpc.StatusCode.INTERNAL, "Internal error from Core")


@dataclass(frozen=True)
class Method:
    """One RPC."""

    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def shown(self) -> str:
        return f"{self.descriptor.containing_service.name}.{self.descriptor.name}"


def methods_of(*services: Any) -> tuple[Method, ...]:
    return tuple(Method(method) for service in services for method in service.methods)


async def call(
    channel: grpc.aio.Channel,
    method: Method,
    payloads: Sequence[bytes],
    ending: Ending,
    metadata: Any,
    rng: random.Random,
) -> tuple[str, str]:
    """(status name or LEFT, details) of one call. `payloads`: exactly one for a method that takes one message, any number for a stream."""
    upward, downward = method.descriptor.client_streaming, method.descriptor.server_streaming
    make = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[upward, downward](method.path)
    running: Any = (
        make(metadata=metadata, timeout=LIMIT) if upward else make(payloads[0], metadata=metadata, timeout=LIMIT)  # type: ignore[call-arg]
    )
    try:
        if upward:
            await (
                running.wait_for_connection()
            )  # a write to a call that was cancelled before it was connected never returns
        if ending in (Ending.CANCEL, Ending.DROP):
            leaving = asyncio.get_running_loop().call_later(rng.choice([0.0, 0.01, 0.3]), running.cancel)
            running.add_done_callback(lambda _: leaving.cancel())
        if upward:
            for payload in payloads:
                if running.done():
                    break
                await running.write(payload)
                await asyncio.sleep(rng.choice([0.0, 0.002, 0.05]))
            if ending is not Ending.LINGER:
                await running.done_writing()
        if downward:
            for _ in range(READS):
                if not isinstance(await running.read(), bytes):  # grpc.aio.EOF
                    break
            else:
                running.cancel()
        else:
            await running
    except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        pass  # the call ended, perhaps while it was written to; its status says why
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        running.cancel()  # it was the call that was cancelled, by its own timer or with its connection
    code: grpc.StatusCode = await running.code()
    if running.cancelled() and ending in (Ending.CANCEL, Ending.DROP):
        return LEFT, ""
    details: str = await running.details() or ""
    return (CUT if (code, details) == _WRITE_FAILED else code.name), details


async def shout(address: str, data: bytes) -> None:
    """Send bytes to a port as they are, without HTTP/2, read a little and go."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(LIMIT):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                writer.write(data)
                await writer.drain()
                await asyncio.wait_for(reader.read(1000), 0.2)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        pass  # whether the server answers is its own affair; what counts is whether it lives

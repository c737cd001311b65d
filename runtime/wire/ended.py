"""How a grpc.aio call ended, in the peer's words.

A write that fails because the call has just ended replaces the status that came by gRPC's own, INTERNAL "Internal error
from Core" (https://github.com/grpc/grpc/issues/36066): a refusal would arrive as a defect, and without its retry hint.
It may also fail before the status comes. The first status that is not gRPC's own is the peer's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

T = TypeVar("T")

CORE = "Internal error from Core"  # details of the status that gRPC makes of a write that failed
PATIENCE = 1.0  # seconds until the peer's status must be there once a write has failed


class CallEnd:
    """Watches one call from its beginning, and keeps the status with which it first ended."""

    def __init__(self, call: grpc.aio.Call):
        self._first: grpc.aio.AioRpcError | None = None
        self._came: asyncio.Event | None = None  # of whoever waits for the first status: few do, and calls are many
        call.add_done_callback(self._ended)

    async def error(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """What ended the call whose read or write raised `error`."""
        if self._first is None and error.details() == CORE:
            self._came = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), PATIENCE)
        return self._first or error

    def _ended(self, call: Any) -> None:
        if self._first is None:
            code, details = _known(call.code()), _known(call.details())
            if (code, details) == (grpc.StatusCode.INTERNAL, CORE):
                return
            if code is grpc.StatusCode.OK:  # then nobody asks, but for whom a write has failed
                code, details = grpc.StatusCode.UNAVAILABLE, "the peer closed the stream while a message was written"
            metadata = grpc.aio.Metadata(*(_known(call.trailing_metadata()) or ()))
            self._first = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)
            if self._came is not None:
                self._came.set()


def _known(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for: the parts of a status that is there. Later they may be others."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        return returned.value
    finally:
        coroutine.close()
    raise AssertionError("a call that has ended has its status")

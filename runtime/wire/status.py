"""Typed errors to gRPC statuses and back: the one place that knows both.

A server ends a call with `abort_with`; a client turns what arrives into the same typed error with `error_from_call`. The hint when to try again
travels as trailing metadata `retry-after`, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn, Protocol
from urllib.parse import quote

import grpc

from triptych.runtime.core.errors import Status, TriptychError, error_for

RETRY_AFTER = "retry-after"
MAX_DETAILS = 4000  # bytes of a status message as HTTP/2 carries it (percent-encoded); peers refuse 8 KiB of trailers, whatever they say

CODES: dict[Status, grpc.StatusCode] = {
    Status(code.value[0]): code for code in grpc.StatusCode if code.value[0] in set(Status)
}
"""gRPC's code of every status; `Status` uses gRPC's numbers, so there is nothing to keep in step."""


class _Aborting(Protocol):
    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn: ...


def trailing_metadata(error: TriptychError) -> tuple[tuple[str, str], ...]:
    """What accompanies the status of `error`."""
    return () if error.retry_after is None else ((RETRY_AFTER, f"{error.retry_after:g}"),)


async def abort_with(context: _Aborting, error: TriptychError) -> NoReturn:
    """End the call of a grpc.aio `context` with the status, message and retry hint of `error`; never returns."""
    try:
        await context.abort(CODES[error.status], _details(error.message), trailing_metadata(error))
    finally:
        del context, error  # see `handlers.py`


def error_from_call(code: grpc.StatusCode | None, details: str | None, metadata: Iterable[Any] | None) -> TriptychError:
    """The typed error that a peer raised, from the end of a failed call. `metadata` is the call's trailing metadata.

    A code that no error of ours has (UNKNOWN, ABORTED, ...) becomes a plain TriptychError, status INTERNAL, that names it.
    """
    message = details or "the peer gave no details"
    known = {grpc_code: status for status, grpc_code in CODES.items()}
    if code is None or code not in known:
        return TriptychError(f"{'no status' if code is None else code.name}: {message}")
    error = error_for(known[code], message)
    error.status = known[code]  # classes are shared by statuses that no class has of its own, e.g. UNAUTHENTICATED
    error.retry_after = _retry_after(metadata)
    return error


def typed_error(error: Any) -> TriptychError:
    """The typed error that a peer raised, from the grpc.aio.AioRpcError, or the blocking grpc.RpcError, of a failed call."""
    return error_from_call(error.code(), error.details(), error.trailing_metadata())


def _details(message: str) -> str:
    """`message`, shortened to what fits a trailer: it may quote input of any length."""
    shown = message[:MAX_DETAILS]
    while len(quote(shown, safe=" ")) > MAX_DETAILS:
        shown = shown[: len(shown) * 3 // 4]
    return shown if len(shown) == len(message) else f"{shown}..."


def _retry_after(metadata: Iterable[Any] | None) -> float | None:
    for entry in metadata or ():
        key, value = entry[0], entry[1]
        if key == RETRY_AFTER:
            try:
                return float(value)
            except ValueError:
                return None
    return None

"""Bearer tokens on gRPC: a shared secret in the `authorization` metadata of every call.

There are two planes: applications show a gateway one of its clients' tokens, processes of a deployment show each other the cluster's token (control,
worker and transfer services). With different tokens a client can reach the gateway and nothing behind it.

A token proves membership, it does not encrypt: use TLS where the network is not trusted. Health checks stay open, because load balancers and
kubelets send none.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from triptych.runtime.core.errors import Status as _Status
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.wire.status import abort_with

AUTHORIZATION = "authorization"
OPEN_PREFIXES = ("/grpc.health.v1.Health/",)

Metadata = tuple[tuple[str, str], ...]


class UnauthenticatedError(TriptychError):
    """The call carries no token, or not the right one."""

    status = _Status.UNAUTHENTICATED


def bearer_metadata(token: str | None) -> Metadata:
    """What a client adds to its calls; nothing without a token. Raises ValueError for a token that HTTP cannot carry."""
    if token is None:
        return ()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError("a bearer token must be printable ASCII and not empty")
    return ((AUTHORIZATION, f"Bearer {token}"),)


def client_of(context: grpc.aio.ServicerContext) -> str:
    """Who calls, for limits: the token shown, or else the address without its port (a new connection is no new client)."""
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION:
            return value if isinstance(value, str) else value.decode("latin-1")
    return context.peer().rpartition(":")[0]


def bearer_interceptor(*tokens: str) -> grpc.aio.ServerInterceptor:
    """A server interceptor that lets only calls with one of `tokens` through; others end with UNAUTHENTICATED."""
    return _BearerServerInterceptor(tokens)


def bearer_client_interceptors(token: str | None) -> list[grpc.aio.ClientInterceptor]:
    """Interceptors for a grpc.aio channel whose every call shall carry `token`."""
    metadata = bearer_metadata(token)
    if not metadata:
        return []
    return [kind(metadata) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]


class _BearerServerInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, tokens: Sequence[str]):
        if not tokens:
            raise ValueError("an interceptor without a token would refuse every call")
        self._expected = [bearer_metadata(token)[0][1].encode() for token in tokens]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method  # type: ignore[attr-defined]
        if handler is None or method.startswith(OPEN_PREFIXES):
            return handler
        metadata: Sequence[tuple[str, str | bytes]] = handler_call_details.invocation_metadata or ()  # type: ignore[attr-defined]
        given = [value for key, value in metadata if key == AUTHORIZATION]
        if len(given) == 1 and self._matches(given[0]):
            return handler
        return _refusing(
            handler, "no bearer token was given; expected one" if not given else "the bearer token is not valid here"
        )

    def _matches(self, given: str | bytes) -> bool:
        # Constant time, and every token is compared: how long a refusal takes must not tell how much of a guess was right.
        shown = given.encode() if isinstance(given, str) else given
        return sum(hmac.compare_digest(shown, expected) for expected in self._expected) > 0


def _refusing(handler: grpc.RpcMethodHandler, reason: str) -> grpc.RpcMethodHandler:
    """A handler of the same arity as `handler` that ends every call with UNAUTHENTICATED."""

    async def refuse(_request: Any, context: grpc.aio.ServicerContext) -> None:
        await abort_with(context, UnauthenticatedError(reason))

    streams: tuple[bool, bool] = (handler.request_streaming, handler.response_streaming)  # type: ignore[attr-defined]
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[streams]
    return make(refuse, handler.request_deserializer, handler.response_serializer)  # type: ignore[attr-defined]


class _Adding:
    """Adds metadata to a call; one subclass an arity, because a grpc.aio channel files an interceptor under the first one it matches."""

    def __init__(self, metadata: Metadata):
        self._metadata = metadata

    def _details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._metadata)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryUnary(_Adding, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._details(client_call_details), request)


class _UnaryStream(_Adding, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._details(client_call_details), request)


class _StreamUnary(_Adding, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._details(client_call_details), request_iterator)


class _StreamStream(_Adding, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._details(client_call_details), request_iterator)

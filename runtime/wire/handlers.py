"""Method handlers of a service, with two rules for all of its methods.

A message that does not parse (a string that is not UTF-8, broken bytes) ends the call with INVALID_ARGUMENT; the generated handlers would say
UNKNOWN, or break the stream without a word. A TriptychError raised by a method becomes its status; any other exception becomes INTERNAL and is
logged, without its text going out.

A call keeps the exception that aborted it, and with its traceback the frames and what their variables hold. These must not hold the call: such a
circle is freed by a full collection only, which comes seldom in a process with many objects, and refused calls would fill its memory meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from triptych.runtime.core.errors import InvalidRequestError, TriptychError
from triptych.runtime.wire.status import abort_with

logger = logging.getLogger(__name__)

_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether the client streams, and whether the server does."""


class _Held:
    """A message of which only the method is to hold on to: gRPC keeps what a deserializer gave until the call has ended."""

    __slots__ = ("message",)

    def __init__(self, message: Message | _Malformed):
        self.message: Message | _Malformed | None = message

    def take(self) -> Message | _Malformed:
        """Once."""
        message, self.message = self.message, None
        assert message is not None, "a message is taken once"
        return message


@dataclass(frozen=True)
class _Malformed:
    """Stands for a message that does not parse, because gRPC lets a deserializer choose no status."""

    reason: str


def service_handler(servicer: object, service: ServiceDescriptor) -> grpc.GenericRpcHandler:
    """The handler of `service`, whose methods are `async def Method(request, context)` of `servicer`.

    A streaming method yields its responses or writes them with `context.write`; a unary one returns its response. Requests that stream are an
    async iterator.
    """
    handlers = {method.name: _handler(getattr(servicer, method.name), method) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(method: Callable[[Any, Any], Any], descriptor: MethodDescriptor) -> grpc.RpcMethodHandler:
    def parsed(request: Any) -> Any:
        """Raises InvalidRequestError; for a stream, when it comes to the message that does not parse."""
        return _stream(request, descriptor) if descriptor.client_streaming else _checked(request.take(), descriptor)

    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Message | None:
        try:
            return await method(parsed(request), context)
        except TriptychError as error:
            failure = error
        except (asyncio.CancelledError, grpc.aio.AbortError, grpc.aio.InternalError):  # the last: the client has gone
            raise
        except Exception as error:
            logger.exception("%s failed", descriptor.full_name)
            failure = _internal(error, descriptor)
        try:
            await abort_with(context, failure)
        finally:
            del request, context, failure

    async def guarded_stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        try:
            async with aclosing(method(parsed(request), context)) as responses:
                async for response in responses:
                    yield response
            return
        except TriptychError as error:
            failure = error
        except (asyncio.CancelledError, grpc.aio.AbortError, grpc.aio.InternalError):  # the last: the client has gone
            raise
        except Exception as error:
            logger.exception("%s failed", descriptor.full_name)
            failure = _internal(error, descriptor)
        try:
            await abort_with(context, failure)
        finally:
            del request, context, failure

    make = _MAKERS[descriptor.client_streaming, descriptor.server_streaming]
    return make(
        guarded_stream if inspect.isasyncgenfunction(method) else guarded,
        request_deserializer=_deserializer(GetMessageClass(descriptor.input_type)),
        response_serializer=GetMessageClass(descriptor.output_type).SerializeToString,
    )


def _internal(error: Exception, descriptor: MethodDescriptor) -> TriptychError:
    return TriptychError(f"internal error ({type(error).__name__}) in {descriptor.name}; the server's log has it")


def _checked(message: Message | _Malformed, descriptor: MethodDescriptor) -> Message:
    if isinstance(message, _Malformed):
        raise InvalidRequestError(f"the request is not a valid {descriptor.input_type.name}: {message.reason}")
    return message


async def _stream(messages: AsyncIterator[_Held], descriptor: MethodDescriptor) -> AsyncIterator[Message]:
    async for message in messages:
        yield _checked(message.take(), descriptor)


def _deserializer(message_class: type[Message]) -> Callable[[bytes], _Held]:
    def parse(data: bytes) -> _Held:
        try:
            return _Held(message_class.FromString(data))
        except DecodeError as error:
            return _Held(_Malformed(str(error)))

    return parse

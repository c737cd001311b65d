"""Method handlers of a service, with two rules for all of its methods.

A request that does not parse (a string that is not UTF-8, broken bytes) ends with INVALID_ARGUMENT; the generated handlers would say UNKNOWN. A
TriptychError raised by a method becomes its status; any other exception becomes INTERNAL and is logged, without its text going out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from triptych.runtime.core.errors import InvalidRequestError, TriptychError
from triptych.runtime.wire.status import abort_with

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Malformed:
    """Stands for a request that does not parse, because gRPC lets a deserializer choose no status."""

    reason: str


def service_handler(servicer: object, service: ServiceDescriptor) -> grpc.GenericRpcHandler:
    """The handler of `service`, whose methods are `async def Method(request, context)` of `servicer`.

    A streaming method writes with `context.write`; a unary one returns its response.
    """
    handlers = {method.name: _handler(getattr(servicer, method.name), method) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(method: Callable[[Any, Any], Any], descriptor: MethodDescriptor) -> grpc.RpcMethodHandler:
    async def guarded(request: Message | _Malformed, context: grpc.aio.ServicerContext) -> Message | None:
        try:
            if isinstance(request, _Malformed):
                raise InvalidRequestError(f"the request is not a valid {descriptor.input_type.name}: {request.reason}")
            return await method(request, context)
        except TriptychError as error:
            failure = error
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            logger.exception("%s failed", descriptor.full_name)
            failure = TriptychError(
                f"internal error ({type(error).__name__}) in {descriptor.name}; the server's log has it"
            )
        await abort_with(context, failure)

    make = grpc.unary_stream_rpc_method_handler if descriptor.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(
        guarded,
        request_deserializer=_deserializer(GetMessageClass(descriptor.input_type)),
        response_serializer=GetMessageClass(descriptor.output_type).SerializeToString,
    )


def _deserializer(message_class: type[Message]) -> Callable[[bytes], Message | _Malformed]:
    def parse(data: bytes) -> Message | _Malformed:
        try:
            return message_class.FromString(data)
        except DecodeError as error:
            return _Malformed(str(error))

    return parse

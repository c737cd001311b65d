"""Health and reflection, the services that every gRPC server of ours has, mounted as our own are: what does not parse is INVALID_ARGUMENT.

The packages' own mounting functions would answer garbage with UNKNOWN and write a stack trace for each piece of it into the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from triptych.runtime.wire.handlers import service_handler

_HEALTH: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


class Health(health.aio.HealthServicer):  # pyright: ignore[reportAttributeAccessIssue] - imported conditionally
    """grpc.health.v1.Health: `set` a service's status, and clients check and watch it."""

    async def List(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Every service and its status. Newer than the package's own servicer."""
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined]
            statuses={
                name: health_pb2.HealthCheckResponse(status=status) for name, status in self._server_status.items()
            }
        )


def add_health(server: grpc.aio.Server, servicer: Health) -> None:
    server.add_generic_rpc_handlers((service_handler(servicer, _HEALTH),))


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let generic clients list and describe `services` (full names), and health and reflection themselves."""
    names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(names)  # pyright: ignore[reportAttributeAccessIssue] - as above
    server.add_generic_rpc_handlers((service_handler(servicer, _REFLECTION),))

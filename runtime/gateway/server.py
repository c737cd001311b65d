"""A gateway: the service and its links, as one thing to start, mount into a gRPC server, and stop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from triptych.proto.v1 import inference_pb2
from triptych.runtime.core.clock import Clock, MonotonicClock
from triptych.runtime.core.control import Directory, GatewayNotice
from triptych.runtime.core.errors import CancelledByClientError, ConfigError, InstanceLostError
from triptych.runtime.core.request import PromptReport, TokenOut
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.directory import servable, worker_addresses
from triptych.runtime.gateway.handlers import service_handler
from triptych.runtime.gateway.links import Connect, insecure_connect
from triptych.runtime.gateway.model import ServedModel
from triptych.runtime.gateway.open_requests import GatewayCounts, OpenRequests
from triptych.runtime.gateway.scheduler_link import SchedulerLink
from triptych.runtime.gateway.service import InferenceService
from triptych.runtime.gateway.worker_link import WorkerLinks

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"]


class Gateway:
    """One gateway on the running event loop.

    Args:
        connect: makes the channels to the scheduler and the workers (TLS is its business).
        metadata: sent with every call to them (authentication).
    """

    def __init__(
        self,
        config: GatewayConfig,
        model: ServedModel,
        facts: ServerFacts,
        *,
        clock: Clock | None = None,
        connect: Connect = insecure_connect,
        metadata: tuple[tuple[str, str], ...] = (),
    ):
        clock = clock or MonotonicClock()
        self.id = f"gateway-{secrets.token_hex(6)}"
        self._requests = OpenRequests(config, clock)
        self._scheduler = SchedulerLink(self.id, config, clock, self, connect, metadata)
        self._workers = WorkerLinks(self.id, config, clock, self, connect, metadata)
        self._service = InferenceService(self.id, model, facts, config, clock, self._requests, self._scheduler)
        self._directory = Directory(())
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] - imported conditionally
        self._health_changed = asyncio.Event()
        self._health_task: asyncio.Task[None] | None = None

    @property
    def open_requests(self) -> int:
        """Gauge for leak checks: 0 when nobody is being served."""
        return self._requests.open

    @property
    def counts(self) -> GatewayCounts:
        return self._requests.counts

    @property
    def serving(self) -> bool:
        """Whether a request could be placed now: a scheduler, and instances for both stages whose tokens arrive here."""
        return self._scheduler.connected and servable(self._directory, self._workers.subscribed)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Mount Inference and health. Reflection comes last, with the names of all services: `add_reflection`."""
        server.add_generic_rpc_handlers((service_handler(self._service, SERVICE),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    async def start(self) -> None:
        self._health_task = asyncio.create_task(self._publish_health(), name="gateway health")
        self._health_changed.set()
        self._scheduler.start()

    async def stop(self) -> None:
        """End every request and every link. Stop the gRPC server first, with the grace that running requests shall have."""
        self._requests.fail_all(CancelledByClientError("the server is shutting down"))
        await self._scheduler.stop()
        await self._workers.close()
        if self._health_task is not None:
            self._health_task.cancel()
            await asyncio.gather(self._health_task, return_exceptions=True)
        self._service.close()

    # ---- what the links hear --------------------------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        self._health_changed.set()

    def on_notice(self, notice: GatewayNotice) -> None:
        if isinstance(notice, Directory):
            self._directory = notice
            self._workers.update(worker_addresses(notice))
            self._health_changed.set()
        else:
            self._requests.notice(notice)

    def on_lost(self, reason: str) -> None:
        self._requests.fail_all(InstanceLostError(f"the scheduler was lost: {reason}; retry later", retry_after=1.0))
        self._health_changed.set()

    def on_tokens(self, tokens: Iterable[TokenOut]) -> None:
        self._requests.tokens(tokens)

    def on_prompt(self, request: str, attempt: int, report: PromptReport) -> None:
        self._requests.prompt(request, attempt, report)

    def on_subscriptions_changed(self) -> None:
        self._health_changed.set()

    async def _publish_health(self) -> None:
        while True:
            await self._health_changed.wait()
            self._health_changed.clear()
            status = (
                health_pb2.HealthCheckResponse.SERVING if self.serving else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            for name in ("", SERVICE.full_name):
                await self._health.set(name, status)


def server_options(config: GatewayConfig) -> tuple[tuple[str, int], ...]:
    """Options of a gRPC server that gateways are mounted into."""
    return (
        ("grpc.max_receive_message_length", config.max_receive_bytes),
        ("grpc.so_reuseport", 0),  # two servers on one port would each get half of the clients
    )


def add_reflection(server: grpc.aio.Server, services: Sequence[str] = (SERVICE.full_name,)) -> None:
    """Let generic clients list and describe `services` (and health and reflection themselves)."""
    names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


async def start_server(
    gateway: Gateway,
    config: GatewayConfig,
    address: str,
    *,
    credentials: grpc.ServerCredentials | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> tuple[grpc.aio.Server, int]:
    """A server of its own for one gateway, started; returns it with its port. Raises ConfigError if `address` is taken."""
    server = grpc.aio.server(interceptors=tuple(interceptors), options=server_options(config))
    gateway.add_to(server)
    add_reflection(server)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from error
    await server.start()
    await gateway.start()
    return server, port

"""A gateway: the service and its links, as one thing to start, mount into a gRPC server, and stop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from triptych.proto.v1 import inference_pb2
from triptych.runtime.core.clock import Clock, MonotonicClock
from triptych.runtime.core.control import Directory, GatewayNotice, MediaNeeded
from triptych.runtime.core.errors import CancelledByClientError
from triptych.runtime.core.request import PromptReport, TokenOut
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.gateway.directory import servable, worker_addresses
from triptych.runtime.gateway.links import Connect, connect_with
from triptych.runtime.gateway.media.bringing import MediaCourier
from triptych.runtime.gateway.media.desk import MediaDesk, Processor
from triptych.runtime.gateway.media.opening import open_media
from triptych.runtime.gateway.model import ServedModel
from triptych.runtime.gateway.open_requests import GatewayCounts, OpenRequests
from triptych.runtime.gateway.scheduler_link import SchedulerLink
from triptych.runtime.gateway.service import InferenceService
from triptych.runtime.gateway.worker_link import WorkerLinks
from triptych.runtime.metrics.observer import RequestObserver, unobserved
from triptych.runtime.wire.handlers import service_handler
from triptych.runtime.wire.listening import listen_at
from triptych.runtime.wire.standard import Health, add_health, add_reflection

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"]


class Gateway:
    """One gateway on the running event loop.

    Args:
        connect: makes the channels to the scheduler and the workers (TLS is its business); None: in plain text.
        metadata: sent with every call to them (authentication).
        health: the health service of the gRPC server, if it has one already; then this gateway only sets its statuses.
        processor: what decodes and processes media; None: one for the model, if it takes any.
        observer: told of every request when it has ended; None: nobody is.
    """

    def __init__(
        self,
        config: GatewayConfig,
        model: ServedModel,
        facts: ServerFacts,
        *,
        clock: Clock | None = None,
        connect: Connect | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
        health: Any = None,
        processor: Processor | None = None,
        observer: RequestObserver | None = None,
    ):
        clock, connect = clock or MonotonicClock(), connect or connect_with(None)
        self.id = f"gateway-{secrets.token_hex(6)}"
        self._requests = OpenRequests(config, clock)
        self._scheduler = SchedulerLink(self.id, config, clock, self, connect, metadata)
        self._workers = WorkerLinks(self.id, config, clock, self, connect, metadata)
        observer = observer or unobserved(clock)
        self._courier = MediaCourier(config, self._workers)
        self._desk, shelf = open_media(model, config, clock, processor)
        self._service = InferenceService(
            self.id,
            model,
            facts,
            config,
            clock,
            self._requests,
            self._scheduler,
            observer,
            self._courier,
            self._desk,
            shelf,
        )
        self._directory = Directory(())
        self._owns_health = health is None
        self._health = Health() if health is None else health
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
    def media(self) -> MediaDesk | None:
        """What is held of media, for gauges and leak checks; None if the model takes none."""
        return self._desk

    @property
    def courier(self) -> MediaCourier:
        """What is being brought to encode instances."""
        return self._courier

    @property
    def serving(self) -> bool:
        """Whether a request could be placed now: a scheduler, and instances for both stages whose tokens arrive here."""
        if self._requests.refusing or not self._scheduler.connected:
            return False
        return servable(self._directory, self._workers.subscribed)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Mount Inference, and health unless the server has it. Reflection comes last, with the names of all services."""
        server.add_generic_rpc_handlers((service_handler(self._service, SERVICE),))
        if self._owns_health:
            add_health(server, self._health)

    async def start(self) -> None:
        if self._desk is not None:
            self._desk.start()
        self._health_task = asyncio.create_task(self._publish_health(), name="gateway health")
        self._health_changed.set()
        self._scheduler.start()

    async def drain(self, grace: float) -> None:
        """Refuse new requests, say NOT_SERVING, and give those that run `grace` seconds to end."""
        self._requests.refuse_new()
        self._health_changed.set()
        until = asyncio.get_running_loop().time() + grace
        while self._requests.open and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """End every request and every link. `drain` and stop the gRPC server first."""
        self._requests.fail_all(CancelledByClientError("the server is shutting down"))
        await self._scheduler.stop()
        await self._courier.close()
        await self._workers.close()
        if self._health_task is not None:
            self._health_task.cancel()
            await asyncio.gather(self._health_task, return_exceptions=True)
        self._service.close()
        if self._desk is not None:
            await self._desk.close()

    # ---- what the links hear --------------------------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        self._requests.introduce()
        self._health_changed.set()

    def on_notice(self, notice: GatewayNotice) -> None:
        if isinstance(notice, Directory):
            self._directory = notice
            self._workers.update(worker_addresses(notice))
            self._courier.follow(notice)
            self._health_changed.set()
        elif isinstance(notice, MediaNeeded):
            self._requests.bring(notice, self._courier)
        else:
            self._requests.notice(notice, self._scheduler)

    def on_lost(self) -> None:
        self._requests.scheduler_lost()
        self._health_changed.set()

    def on_tokens(self, tokens: Iterable[TokenOut]) -> None:
        self._requests.tokens(tokens)

    def on_prompt(self, request: str, attempt: int, report: PromptReport, times: StageTimes) -> None:
        self._requests.prompt(request, attempt, report, times)

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
        # a client whose host vanished without a reset is noticed after at most a minute; clients may ping as well
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 30_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    )


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
    add_reflection(server, (SERVICE.full_name,))
    port = listen_at(server, address, credentials)
    await server.start()
    await gateway.start()
    return server, port

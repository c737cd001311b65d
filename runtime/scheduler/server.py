"""A gRPC server with the Control service, health and reflection. Other services may be added before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2

from triptych.proto.v1 import control_pb2
from triptych.runtime.core.clock import Clock, MonotonicClock
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.control_loop import ControlLoop
from triptych.runtime.scheduler.policies.queue_order import QUEUE_ORDERS
from triptych.runtime.scheduler.policies.role_controller import ROLE_CONTROLLERS
from triptych.runtime.scheduler.policies.router import ROUTERS
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.scheduler.service import ControlServicer
from triptych.runtime.wire.auth import bearer_interceptor
from triptych.runtime.wire.handlers import service_handler
from triptych.runtime.wire.listening import listen
from triptych.runtime.wire.standard import Health, add_health, add_reflection

CONTROL = control_pb2.DESCRIPTOR.services_by_name["Control"]
SERVICE: str = CONTROL.full_name

PING_MS = 10_000  # a peer whose host vanished without a reset is noticed after at most twice this, heartbeats or not

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 2**20),  # a prompt of millions of tokens in one Submit
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a coin toss
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_MS),
    ("grpc.http2.max_pings_without_data", 0),
    (
        "grpc.http2.min_ping_interval_without_data_ms",
        PING_MS // 4,
    ),  # peers ping, too, and must not be taken for attackers
)


@dataclass(frozen=True)
class ControlServerConfig:
    """Where the control plane listens and how it decides. Port 0 lets the system choose."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = field(default=None, repr=False)
    router: str = "least-loaded"
    queue_order: str = "fcfs"
    role_controller: str = "none"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        """Raises ConfigError naming every unknown policy."""
        wrong = [
            f"{name} is {value!r}; expected one of {', '.join(known)}"
            for name, value, known in (
                ("router", self.router, ROUTERS),
                ("queue_order", self.queue_order, QUEUE_ORDERS),
                ("role_controller", self.role_controller, ROLE_CONTROLLERS),
            )
            if value not in known
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))


def build_control(config: ControlServerConfig, clock: Clock | None = None) -> ControlLoop:
    """The control plane without a server, for mounting into one: `add_control(loop, server)`, then `loop.start()`."""
    scheduler = Scheduler(
        config.scheduler,
        ROUTERS[config.router](),
        QUEUE_ORDERS[config.queue_order](),
        ROLE_CONTROLLERS[config.role_controller](),
    )
    return ControlLoop(scheduler, clock or MonotonicClock())


def add_control(control: ControlLoop, server: grpc.aio.Server) -> None:
    """Mount the Control service."""
    server.add_generic_rpc_handlers((service_handler(ControlServicer(control), CONTROL),))


class ControlServer:
    """The control plane and its server: `start`, then `wait`, then `stop`. Made on the event loop that it is to run on.

    `server` is open for more services until `start`; name them in `start(services=...)` for reflection. `health` is theirs to use, too.
    """

    def __init__(
        self,
        config: ControlServerConfig,
        *,
        clock: Clock | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ):
        """Raises ConfigError if the address is taken."""
        interceptors = [] if config.token is None else [bearer_interceptor(config.token)]
        self.server = grpc.aio.server(interceptors=interceptors, options=OPTIONS)
        self.control = build_control(config, clock)
        self.health = Health()
        add_control(self.control, self.server)
        add_health(self.server, self.health)
        self.port = listen(self.server, config.host, config.port, credentials)
        self.address = f"{config.host}:{self.port}"

    async def start(self, services: Sequence[str] = ()) -> None:
        add_reflection(self.server, (SERVICE, *services))
        await self.server.start()
        self.control.start()
        for name in ("", SERVICE):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def wait(self) -> None:
        """Wait until the control plane fails; raises what it raised."""
        await self.control.wait()

    async def stop(self, grace: float = 1.0) -> None:
        """Close every stream, then the port."""
        await self.health.enter_graceful_shutdown()
        await self.control.stop()
        await self.server.stop(grace)


def build_server(
    config: ControlServerConfig, *, clock: Clock | None = None, credentials: grpc.ServerCredentials | None = None
) -> ControlServer:
    """A server with Control, health and reflection, listening but not started. Raises ConfigError if the address is taken."""
    return ControlServer(config, clock=clock, credentials=credentials)

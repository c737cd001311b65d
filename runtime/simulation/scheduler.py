"""A simulated scheduler process: the real Scheduler, with what its gRPC shell does around it.

A peer's life is the life of its stream; a peer that connects again under its name takes over. The process can be killed and started again
with an empty state, as any other.
"""

from __future__ import annotations

from collections.abc import Callable

from triptych.runtime.core.control import (
    DrainEnded,
    DrainRequested,
    DropWorker,
    GatewayJoined,
    GatewayLeft,
    GatewayLost,
    SchedulerCommand,
    SchedulerEvent,
    SchedulerTick,
    ToGateway,
    ToInstance,
    ToWorker,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
)
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.events import Process
from triptych.runtime.simulation.gateway import SERVICE as GATEWAY
from triptych.runtime.simulation.network import End, Network
from triptych.runtime.simulation.worker import SERVICE as WORKER
from triptych.runtime.simulation.worker import InstanceCommand, Leave, Welcome

TICK = 0.05  # seconds, as in the live control loop

Witness = Callable[[SchedulerEvent, list[SchedulerCommand]], None]


class SimScheduler(Process):
    """One life of the scheduler. `witness` sees every event and what came of it."""

    def __init__(
        self, name: str, core: Scheduler, network: Network, *, tick: float = TICK, witness: Witness | None = None
    ):
        super().__init__(name)
        self.core = core
        self._network = network
        self._loop = network.loop
        self._tick_seconds = tick
        self._witness = witness
        self.drains: dict[str, list[DrainEnded]] = {}  # by ticket: the answers, of which one must come
        self._workers: dict[str, End] = {}
        self._gateways: dict[str, End] = {}

    def start(self) -> None:
        """Listen and let time pass."""
        self._network.listen(self, self._accept)
        self._tick(None)

    def feed(self, event: SchedulerEvent) -> None:
        """Handle `event` now and do what comes of it."""
        if isinstance(event, DrainRequested):
            self.drains[event.ticket] = []
        commands = self.core.handle(event, self._loop.now())
        if self._witness is not None:
            self._witness(event, commands)
        for command in commands:
            match command:
                case ToInstance():
                    end = self._workers.get(command.worker)
                    if end is not None:
                        end.send(InstanceCommand(command.ref, command.command))
                case ToGateway():
                    end = self._gateways.get(command.gateway)
                    if end is not None:
                        end.send(command.notice)
                case ToWorker():
                    end = self._workers.get(command.worker)
                    if end is not None:
                        end.send(command.command)
                case DrainEnded():
                    self.drains[command.ticket].append(command)
                case DropWorker():
                    end = self._workers.get(command.worker)
                    if end is not None:
                        end.close(command.reason)
                        lost = WorkerLost(command.worker, command.reason)
                        self._loop.after(0.0, self, self._dropped, (command.worker, end, lost))

    def _tick(self, _: None) -> None:
        self.feed(SchedulerTick())
        self._loop.after(self._tick_seconds, self, self._tick)

    # ---- streams

    def _accept(self, end: End, dialler: str, service: str) -> None:
        if service == WORKER:
            end.on_message = lambda message: self._first_of_worker(end, message)
        elif service == GATEWAY:
            self._take_over(self._gateways, dialler, end)
            end.on_message = lambda message: self._hear_gateway(dialler, end, message)
            end.on_closed = lambda reason: self._gateway_gone(dialler, end, GatewayLost(dialler))
            self.feed(GatewayJoined(dialler))

    def _first_of_worker(self, end: End, joined: WorkerJoined) -> None:
        self._take_over(self._workers, joined.worker, end)
        worker = joined.worker
        end.on_message = lambda message: self._hear_worker(worker, end, message)
        end.on_closed = lambda reason: self._worker_gone(worker, end, WorkerLost(worker, reason))
        end.send(Welcome(self.core.config.heartbeat_interval))
        self.feed(joined)

    def _dropped(self, dropped: tuple[str, End, WorkerLost]) -> None:
        """The task that served the stream has ended."""
        self._worker_gone(*dropped)

    def _hear_worker(self, worker: str, end: End, message: SchedulerEvent | Leave) -> None:
        if isinstance(message, Leave):
            self._worker_gone(worker, end, WorkerLeft(worker, message.reason))
        elif self._workers.get(worker) is end:  # else a newer stream says what is true now
            self.feed(message)

    def _hear_gateway(self, gateway: str, end: End, message: SchedulerEvent | Leave) -> None:
        if isinstance(message, Leave):
            self._gateway_gone(gateway, end, GatewayLeft(gateway))
        elif self._gateways.get(gateway) is end:
            self.feed(message)

    def _take_over(self, streams: dict[str, End], name: str, end: End) -> None:
        old = streams.get(name)
        streams[name] = end
        if old is not None:
            old.abort(f"{name} connected again; this stream is superseded")

    def _worker_gone(self, worker: str, end: End, event: WorkerLost | WorkerLeft) -> None:
        if self._workers.get(worker) is end:
            del self._workers[worker]
            self.feed(event)

    def _gateway_gone(self, gateway: str, end: End, event: GatewayLost | GatewayLeft) -> None:
        if self._gateways.get(gateway) is end:
            del self._gateways[gateway]
            self.feed(event)

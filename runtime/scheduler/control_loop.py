"""The live shell's core: one asyncio loop feeds events to the scheduler, one at a time, and hands its commands to the peers' outboxes.

Nothing here decides anything. If the scheduler raises, its state is no longer to be trusted: the loop refuses all further events and `wait`
raises, so that the process ends loudly and a fresh one rebuilds the state from what workers and gateways declare again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from triptych.proto.v1 import common_pb2, control_pb2
from triptych.runtime.core.clock import Clock
from triptych.runtime.core.control import (
    DrainEnded,
    DrainRequested,
    DropWorker,
    InstanceReset,
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
from triptych.runtime.core.errors import IncompatibleError, InstanceLostError, Status, error_for
from triptych.runtime.core.instance import Role
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.scheduler.snapshot import ClusterSnapshot
from triptych.runtime.wire.convert import encode, encode_oneof
from triptych.runtime.wire.outbox import Outbox

log = logging.getLogger(__name__)

TICK = 0.05  # seconds; core.control asks for one at least every 100 ms


class ControlLoop:
    """Owner of the scheduler and of the connected peers' outboxes. Use on one event loop only."""

    def __init__(self, scheduler: Scheduler, clock: Clock):
        self._scheduler = scheduler
        self._clock = clock
        self.workers: dict[str, Outbox[control_pb2.WorkerCommand]] = {}
        self.gateways: dict[str, Outbox[control_pb2.GatewayNotice]] = {}
        self._drains: dict[str, asyncio.Future[DrainEnded]] = {}
        self._tickets = 0
        self._failure: Exception | None = None
        self._failed = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None

    @property
    def scheduler(self) -> Scheduler:
        return self._scheduler

    def now(self) -> float:
        return self._clock.now()

    def start(self) -> None:
        """Let time pass."""
        self._ticker = asyncio.create_task(self._tick(), name="scheduler ticks")

    async def stop(self) -> None:
        """Close every stream and stop the clock."""
        reason = "the scheduler is shutting down"
        for outbox in (*self.workers.values(), *self.gateways.values()):
            outbox.close(InstanceLostError(reason))
        for ticket, drain in self._drains.items():
            if not drain.done():
                drain.set_result(DrainEnded(ticket, Status.UNAVAILABLE, reason))
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    async def wait(self) -> None:
        """Wait until the scheduler fails, and raise what it raised."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    def feed(self, event: SchedulerEvent) -> None:
        """Handle `event` now. Raises InstanceLostError if the scheduler has failed, now or before: peers shall look for the next one."""
        if self._failure is not None:
            raise InstanceLostError("the scheduler has failed; its process must be restarted")
        if isinstance(event, WorkerJoined):
            log.info("worker %s joined with %s", event.worker, ", ".join(info.ref.id for info in event.instances))
        elif isinstance(event, WorkerLeft):
            log.info("worker %s is gone: %s", event.worker, event.reason)
        elif isinstance(event, WorkerLost):
            log.warning("the stream of worker %s broke: %s", event.worker, event.reason)
        try:
            commands = self._scheduler.handle(event, self._clock.now())
            for command in commands:
                self._execute(event, command)
        except Exception as error:
            log.critical("the scheduler failed on %s", type(event).__name__, exc_info=error)
            self._failure = error
            self._failed.set()
            raise InstanceLostError(f"the scheduler failed on {type(event).__name__}") from error

    async def drain(self, instance: str, roles: frozenset[Role] | None, *, force: bool) -> float:
        """Drain an instance until it has changed; returns the seconds that took. A caller that goes away does not stop it.

        Raises the typed error of the scheduler's answer.
        """
        self._tickets += 1
        ticket = str(self._tickets)
        answer = self._drains[ticket] = asyncio.get_running_loop().create_future()
        try:
            self.feed(DrainRequested(ticket, instance, roles, force))
            ended = await answer
        finally:
            del self._drains[ticket]
        if ended.status is not Status.OK:
            raise error_for(ended.status, ended.reason)
        return ended.seconds

    def snapshot(self) -> ClusterSnapshot:
        return self._scheduler.snapshot(self._clock.now())

    def silence(self, worker: str) -> float:
        """Seconds since the last sign of life of a worker; infinity if it is not registered."""
        return self._scheduler.silence(worker, self._clock.now())

    def _execute(self, event: SchedulerEvent, command: SchedulerCommand) -> None:
        now = self._clock.now()
        match command:
            case ToInstance():
                worker = self.workers.get(command.worker)
                if worker is not None:
                    ref = encode(command.ref, common_pb2.InstanceRef, now)
                    inner = encode_oneof(command.command, control_pb2.TaskCommand, now)
                    message = control_pb2.InstanceCommand(ref=ref, command=inner)
                    worker.put(control_pb2.WorkerCommand(instance_command=message))
            case ToWorker():
                worker = self.workers.get(command.worker)
                if worker is not None:
                    worker.put(encode_oneof(command.command, control_pb2.WorkerCommand, now))
            case DrainEnded():
                answer = self._drains.get(command.ticket)
                if answer is not None and not answer.done():
                    answer.set_result(command)
            case ToGateway():
                gateway = self.gateways.get(command.gateway)
                if gateway is not None:
                    gateway.put(encode_oneof(command.notice, control_pb2.GatewayNotice, now))
            case DropWorker():
                log.warning("dropping worker %s: %s", command.worker, command.reason)
                worker = self.workers.get(command.worker)
                if worker is not None:
                    # What it registered is wrong, or it was silent: only in the second case may the same registration work later.
                    registered = isinstance(event, WorkerJoined | InstanceReset) and event.worker == command.worker
                    worker.close((IncompatibleError if registered else InstanceLostError)(command.reason))

    async def _tick(self) -> None:
        with contextlib.suppress(InstanceLostError):  # whoever waits for this loop hears of it
            while True:
                await asyncio.sleep(TICK)
                self.feed(SchedulerTick())

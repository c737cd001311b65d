"""A worker's one stream to the scheduler: registration, heartbeats and reports up, commands down.

The stream is the registration: while it lives the scheduler counts on this worker. There is no silent reconnect: the owner hears of the loss
once, and registers again with a new client, which declares what is held here by then. What is reported to a client before its stream stands
waits and follows the registration: the owner takes what it declares and sends everything later here, and nothing falls in between.

Lives on the asyncio loop on which it is made; what it is told may come from any thread, and keeps the caller's order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.clock import Clock, MonotonicClock
from triptych.runtime.core.control import (
    Heartbeat,
    InstanceLeft,
    InstanceLoad,
    InstanceReset,
    Reported,
    Retire,
    RolesRefused,
    SetRoles,
    SetShare,
    WorkerJoined,
)
from triptych.runtime.core.errors import InstanceLostError, InvalidRequestError, TriptychError
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.core.tasks import HeldTask, TaskCommand, TaskReport
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.convert import decode, decode_oneof, encode_oneof
from triptych.runtime.wire.ended import CallEnd
from triptych.runtime.wire.outbox import Outbox
from triptych.runtime.wire.status import typed_error
from triptych.runtime.wire.tls import Tls, open_channel

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0  # seconds from the first packet to the scheduler's welcome
LEAVE_TIMEOUT = 2.0  # seconds that a good-bye may take; the scheduler notices an end without one just as well
OUTBOX = 65_536  # messages; a scheduler that falls this far behind is as good as lost

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 2**20),  # a prompt of millions of tokens in one command
    (
        "grpc.keepalive_time_ms",
        5_000,
    ),  # a scheduler whose host vanished without a reset is noticed after at most twice this
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # a new client must open a new connection, not share one that is being torn down
)

WorkerOrder = TaskCommand | SetRoles | SetShare | Retire
CommandHandler = Callable[[InstanceRef, WorkerOrder], None]


class ControlClient:
    """One life of the connection: `connect` once, then it lives until `on_lost` is called or `leave` returns.

    Args:
        address: the scheduler's host:port.
        token: the deployment's bearer token, if it has one.
        worker: this process's name, unique in the cluster.
        loads: the present load of every instance, asked before each heartbeat; only changes are sent.
        on_command: called on the loop with each command and the instance that it is for, in order; must not block.
        on_lost: called on the loop with the reason, exactly once after a successful `connect`, unless `leave` was called first.
        tls: certificates; None: plain text.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        worker: str,
        loads: Callable[[], Mapping[InstanceRef, Load]],
        on_command: CommandHandler,
        on_lost: Callable[[str], None],
        clock: Clock | None = None,
        tls: Tls | None = None,
    ):
        self._address = address
        self._metadata = bearer_metadata(token)
        self._worker = worker
        self._loads = loads
        self._on_command = on_command
        self._on_lost = on_lost
        self._clock = clock or MonotonicClock()
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._outbox: Outbox[control_pb2.WorkerMessage] = Outbox(f"the scheduler at {address}", OUTBOX)
        self._life: asyncio.Task[None] | None = None
        self._leaving = False
        self._sent: Mapping[InstanceRef, Load] = {}  # the loads that the scheduler knows

    async def connect(
        self, instances: Sequence[InstanceInfo], held: Sequence[HeldTask] = (), timeout: float = CONNECT_TIMEOUT
    ) -> None:
        """Register these instances, which hold these tasks. When this returns the scheduler has accepted the worker; commands arrive from the caller's next await on.

        Raises the typed error with which the scheduler refused (IncompatibleError, UNAUTHENTICATED, ...), or InstanceLostError if it cannot
        be reached within `timeout` seconds. Nothing is left open then.
        """
        if self._life is not None:
            raise RuntimeError("a ControlClient connects once; make a new one")
        channel = open_channel(self._address, self._tls, OPTIONS)
        call = control_pb2_grpc.ControlStub(channel).Worker(metadata=self._metadata)
        end = CallEnd(call)
        try:
            async with asyncio.timeout(timeout):  # wait_for of Python 3.11 can swallow a cancellation
                interval = await self._register(call, end, WorkerJoined(self._worker, tuple(instances), tuple(held)))
        except BaseException as error:
            self._outbox.close()
            call.cancel()
            await channel.close()
            if isinstance(error, TimeoutError):
                raise InstanceLostError(
                    f"no welcome from the scheduler at {self._address} within {timeout:g} s"
                ) from None
            raise
        self._life = asyncio.create_task(self._live(channel, call, end, self._outbox, interval), name="control stream")

    def report(self, ref: InstanceRef, report: TaskReport) -> None:
        """Tell the scheduler what became of a task. Dropped if the stream has ended: the next one declares what is held then."""
        self._post(Reported(ref, report))

    def instance_reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None:
        """Tell the scheduler that `old` lost its pool or took on other roles, and goes on as `info`."""
        self._post(InstanceReset(self._worker, old, info, reason))
        self._sent = {}  # the scheduler forgets the old loads, and may have ignored ones that came too early

    def instance_left(self, ref: InstanceRef, reason: str) -> None:
        """Tell the scheduler that an instance is gone for good; the worker goes on."""
        self._post(InstanceLeft(self._worker, ref, reason))

    def roles_refused(self, ref: InstanceRef, reason: str) -> None:
        """Tell the scheduler that an instance stays as it is."""
        self._post(RolesRefused(self._worker, ref, reason))

    async def leave(self, reason: str = "left") -> None:
        """Say good-bye and close; `on_lost` is not called any more. Everything still running here is lost in the scheduler's eyes."""
        if self._life is None:
            self._outbox.close()
            return
        self._leaving = True
        self._outbox.put(control_pb2.WorkerMessage(leave=control_pb2.Leave(reason=reason)))
        await asyncio.wait({self._life}, timeout=LEAVE_TIMEOUT)
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)

    # ---- the stream

    async def _register(self, call: grpc.aio.StreamStreamCall, end: CallEnd, joined: WorkerJoined) -> float:
        """Send the registration, wait for the welcome; returns the seconds between heartbeats."""
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # it is over: the read says how
                await call.write(encode_oneof(joined, control_pb2.WorkerMessage, self._clock.now()))
            welcome = await call.read()
        except grpc.aio.AioRpcError as error:
            raise typed_error(await end.error(error)) from error
        if not isinstance(welcome, control_pb2.WorkerCommand):
            raise InstanceLostError("the scheduler closed the stream without a welcome")
        if welcome.WhichOneof("kind") != "welcome":
            raise InvalidRequestError(f"expected welcome from the scheduler, got {welcome.WhichOneof('kind')}")
        return welcome.welcome.heartbeat_interval

    async def _live(
        self,
        channel: grpc.aio.Channel,
        call: grpc.aio.StreamStreamCall,
        end: CallEnd,
        outbox: Outbox[control_pb2.WorkerMessage],
        interval: float,
    ) -> None:
        beating = asyncio.create_task(self._beat(outbox, interval), name="heartbeats")
        reason = "the scheduler closed the stream"

        async def write(message: control_pb2.WorkerMessage) -> None:
            try:
                await call.write(message)
            except asyncio.InvalidStateError as error:
                raise InstanceLostError("the stream to the scheduler ended before a message was written") from error

        try:
            await outbox.converse(write, self._listen(call))
        except TriptychError as error:
            reason = error.message
        except grpc.aio.AioRpcError as error:
            reason = typed_error(await end.error(error)).message
        except Exception as error:
            log.exception("the control stream of worker %s failed", self._worker)
            reason = f"{type(error).__name__}: {error}"
        finally:
            outbox.close()
            beating.cancel()
            call.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await channel.close()
        if not self._leaving:
            self._on_lost(reason)

    async def _listen(self, call: grpc.aio.StreamStreamCall) -> None:
        # read(), as in `_register`: a call is either read or iterated over, never both.
        while isinstance(message := await call.read(), control_pb2.WorkerCommand):
            now = self._clock.now()
            match message.WhichOneof("kind"):
                case "instance_command":
                    ref = decode(message.instance_command.ref, InstanceRef, now)
                    self._on_command(ref, decode_oneof(message.instance_command.command, now))
                case "set_roles" | "set_share" | "retire":
                    order: SetRoles | SetShare | Retire = decode_oneof(message, now)
                    self._on_command(order.ref, order)
                case other:
                    raise InvalidRequestError(f"the scheduler sent {other}, expected a command")

    async def _beat(self, outbox: Outbox[control_pb2.WorkerMessage], interval: float) -> None:
        while True:
            try:
                loads = dict(self._loads())
            except Exception as error:
                # Without loads the heartbeat would claim health that nobody can vouch for.
                log.exception("the load of worker %s cannot be read", self._worker)
                outbox.close(InstanceLostError(f"the load of worker {self._worker} cannot be read: {error}"))
                return
            changed = tuple(InstanceLoad(ref, load) for ref, load in loads.items() if self._sent.get(ref) != load)
            self._sent = loads
            beat = Heartbeat(self._worker, changed)
            outbox.put(encode_oneof(beat, control_pb2.WorkerMessage, self._clock.now()))
            await asyncio.sleep(interval)

    def _post(self, event: Reported | InstanceReset | InstanceLeft | RolesRefused) -> None:
        if self._outbox.closed:
            return
        message = encode_oneof(event, control_pb2.WorkerMessage, self._clock.now())
        if _running_loop() is self._loop:
            self._outbox.put(message)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outbox.put, message)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None

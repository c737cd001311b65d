"""A worker's one stream to the scheduler: registration, heartbeats and reports up, task commands down.

The stream is the registration: while it lives the scheduler counts on this worker, when it ends everything placed here has failed in the
scheduler's eyes. So there is no silent reconnect; the owner hears of the loss once, ends what was running, and registers again with
a new client if it wants to.

Lives on one asyncio loop; `report` and `instance_reset` may be called from any thread and keep the caller's order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc
from triptych.runtime.core.clock import Clock, MonotonicClock
from triptych.runtime.core.control import Heartbeat, InstanceLoad, InstanceReset, Reported, WorkerJoined
from triptych.runtime.core.errors import InstanceLostError, InvalidRequestError, TriptychError
from triptych.runtime.core.instance import InstanceInfo, InstanceRef, Load
from triptych.runtime.core.tasks import TaskCommand, TaskReport
from triptych.runtime.wire.auth import bearer_metadata
from triptych.runtime.wire.convert import decode, decode_oneof, encode_oneof
from triptych.runtime.wire.outbox import Outbox
from triptych.runtime.wire.status import error_from_call

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

CommandHandler = Callable[[InstanceRef, TaskCommand], None]


class ControlClient:
    """One life of the connection: `connect` once, then `report` until `on_lost` is called or `leave` returns.

    Args:
        address: the scheduler's host:port.
        token: the deployment's bearer token, if it has one.
        worker: this process's name, unique in the cluster.
        instances: what to register, asked at `connect`.
        loads: the present load of every instance, asked before each heartbeat; only changes are sent.
        on_command: called on the loop with each command, in order; must not block.
        on_lost: called on the loop with the reason, exactly once after a successful `connect`, unless `leave` was called first.
        credentials: for TLS.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        worker: str,
        instances: Callable[[], Sequence[InstanceInfo]],
        loads: Callable[[], Mapping[InstanceRef, Load]],
        on_command: CommandHandler,
        on_lost: Callable[[str], None],
        clock: Clock | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ):
        self._address = address
        self._metadata = bearer_metadata(token)
        self._worker = worker
        self._instances = instances
        self._loads = loads
        self._on_command = on_command
        self._on_lost = on_lost
        self._clock = clock or MonotonicClock()
        self._credentials = credentials
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox: Outbox[control_pb2.WorkerMessage] | None = None
        self._life: asyncio.Task[None] | None = None
        self._leaving = False
        self._sent: Mapping[InstanceRef, Load] = {}  # the loads that the scheduler knows

    async def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Register. When this returns the scheduler has accepted the worker; commands arrive from the caller's next await on.

        Raises the typed error with which the scheduler refused (IncompatibleError, UNAUTHENTICATED, ...), or InstanceLostError if it cannot
        be reached within `timeout` seconds. Nothing is left open then.
        """
        if self._life is not None:
            raise RuntimeError("a ControlClient connects once; make a new one")
        self._loop = asyncio.get_running_loop()
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        else:
            channel = grpc.aio.secure_channel(self._address, self._credentials, options=OPTIONS)
        call = control_pb2_grpc.ControlStub(channel).Worker(metadata=self._metadata)
        try:
            async with asyncio.timeout(timeout):  # wait_for of Python 3.11 can swallow a cancellation
                interval = await self._register(call)
        except BaseException as error:
            call.cancel()
            await channel.close()
            if isinstance(error, TimeoutError):
                raise InstanceLostError(
                    f"no welcome from the scheduler at {self._address} within {timeout:g} s"
                ) from None
            raise
        self._outbox = Outbox(f"the scheduler at {self._address}", OUTBOX)
        self._life = asyncio.create_task(self._live(channel, call, self._outbox, interval), name="control stream")

    def report(self, ref: InstanceRef, report: TaskReport) -> None:
        """Tell the scheduler what became of a task. Dropped if the stream has ended: the scheduler has given the task up then."""
        self._post(Reported(ref, report))

    def instance_reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None:
        """Tell the scheduler that `old` lost its pool and goes on as `info`."""
        self._post(InstanceReset(self._worker, old, info, reason))
        self._sent = {}  # the scheduler forgets the old loads, and may have ignored ones that came too early

    async def leave(self, reason: str = "left") -> None:
        """Say good-bye and close; `on_lost` is not called any more. Everything still running here fails in the scheduler's eyes."""
        if self._life is None or self._outbox is None:
            return
        self._leaving = True
        self._outbox.put(control_pb2.WorkerMessage(leave=control_pb2.Leave(reason=reason)))
        await asyncio.wait({self._life}, timeout=LEAVE_TIMEOUT)
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)

    # ---- the stream

    async def _register(self, call: grpc.aio.StreamStreamCall) -> float:
        """Send the registration, wait for the welcome; returns the seconds between heartbeats."""
        joined = WorkerJoined(self._worker, tuple(self._instances()))
        welcome = None
        try:
            await call.write(encode_oneof(joined, control_pb2.WorkerMessage, self._clock.now()))
            welcome = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the call's own status says more than the failed write
        if not isinstance(welcome, control_pb2.WorkerCommand):
            raise error_from_call(await call.code(), await call.details(), await call.trailing_metadata())
        if welcome.WhichOneof("kind") != "welcome":
            raise InvalidRequestError(f"expected welcome from the scheduler, got {welcome.WhichOneof('kind')}")
        return welcome.welcome.heartbeat_interval

    async def _live(
        self,
        channel: grpc.aio.Channel,
        call: grpc.aio.StreamStreamCall,
        outbox: Outbox[control_pb2.WorkerMessage],
        interval: float,
    ) -> None:
        beating = asyncio.create_task(self._beat(outbox, interval), name="heartbeats")
        broke = InstanceLostError("the stream to the scheduler broke while a message was being written")
        reason = "the scheduler closed the stream"

        async def write(message: control_pb2.WorkerMessage) -> None:
            try:
                await call.write(message)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                raise broke from error

        try:
            await outbox.converse(write, self._listen(call))
        except TriptychError as error:
            reason = error.message
        except grpc.aio.AioRpcError as error:
            # A failed write replaces the call's status by one of gRPC's own, INTERNAL, that says nothing.
            overwritten = broke.__cause__ is not None and error.code() is grpc.StatusCode.INTERNAL
            known = error_from_call(error.code(), error.details(), error.trailing_metadata())
            reason = broke.message if overwritten else known.message
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
            if message.WhichOneof("kind") != "instance_command":
                raise InvalidRequestError(f"the scheduler sent {message.WhichOneof('kind')}, expected instance_command")
            now = self._clock.now()
            ref = decode(message.instance_command.ref, InstanceRef, now)
            self._on_command(ref, decode_oneof(message.instance_command.command, now))

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

    def _post(self, event: Reported | InstanceReset) -> None:
        if self._loop is None or self._outbox is None or self._outbox.closed:
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

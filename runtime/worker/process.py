"""The process that owns devices: its instances behind gRPC, registered with the scheduler for as long as both live.

Start: open the model, build every instance (weights, programs), listen, start the device loops, register. From then on commands come from the
scheduler's stream, tokens leave through the gateways' subscriptions, and KV is served to peers. If the scheduler is lost, whatever was
running has nobody to report to: it ends here, every instance gets a new epoch, and the worker registers again when it can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from triptych.models.hub.bundle import ModelBundle
from triptych.models.text.detokenizer import Detokenizer
from triptych.models.text.stop import StopMatcher
from triptych.models.text.tokenizer import Tokenizer
from triptych.proto.v1 import transfer_pb2_grpc, worker_pb2_grpc
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import EngineError, InvalidRequestError, Status, TriptychError
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, TransportKind
from triptych.runtime.core.tasks import TaskCommand, TaskReport
from triptych.runtime.instance.termination import StopProbe
from triptych.runtime.transfer.channels import SERVER_OPTIONS, PeerChannels
from triptych.runtime.transfer.header import CHUNK_ORDER, PROTOCOL_VERSION
from triptych.runtime.transfer.service import TransferServicer
from triptych.runtime.transfer.transports import TransportConfig, open_transports
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.grpc import GrpcTransport
from triptych.runtime.transfer.transports.local import LocalHub
from triptych.runtime.wire.auth import bearer_client_interceptors, bearer_interceptor
from triptych.runtime.wire.listening import listen, local_endpoint
from triptych.runtime.worker.build import InstanceParts, build_instances, open_bundle
from triptych.runtime.worker.config import WorkerConfig
from triptych.runtime.worker.control_client import ControlClient
from triptych.runtime.worker.instance import LiveInstance, Surroundings, make_core, new_epoch
from triptych.runtime.worker.outbox import Outboxes
from triptych.runtime.worker.service import WorkerServicer

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_MOST = 0.2, 5.0  # seconds between attempts to register again
STABLE = 10.0  # seconds; a registration that lasted longer was a good one
REFUSED_FOR_GOOD = frozenset(
    {Status.FAILED_PRECONDITION, Status.INVALID_ARGUMENT, Status.UNAUTHENTICATED, Status.PERMISSION_DENIED}
)  # by the first scheduler it finds: wrong model, page size or token. Later a scheduler may be replaced, and waiting is right.
THREADS = 8  # wait for devices and copy bytes; pulls are bounded, so few are ever busy


class WorkerProcess:
    """One per process. `start` returns when it is registered; `wait` ends when it must end; `stop` leaves in good order."""

    def __init__(self, config: WorkerConfig, *, progress: Callable[[str], None] = log.info):
        self._config = config
        self._progress = progress
        self._clock = MonotonicClock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="worker")
        self._outboxes = Outboxes()
        self._instances: dict[str, LiveInstance] = {}
        self._transports: Mapping[TransportKind, Transport] = {}
        self._channels = PeerChannels(interceptors=bearer_client_interceptors(config.token))
        self._server: grpc.aio.Server | None = None
        self._control: ControlClient | None = None
        self._membership: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._renewals: list[asyncio.Future[None]] = []
        self._stopping = False
        self._registered = asyncio.Event()
        self._dead: asyncio.Future[str] | None = None
        self.address = ""

    @property
    def instances(self) -> Sequence[LiveInstance]:
        return tuple(self._instances.values())

    async def start(self) -> None:
        """Until registered. An unreachable scheduler is waited for; one that refuses this worker for good is an error.

        Raises ConfigError, what loading and compiling raise, and the scheduler's refusal; nothing is left running then but what `stop` ends.
        """
        loop = asyncio.get_running_loop()
        self._dead = loop.create_future()
        bundle = await loop.run_in_executor(self._threads, open_bundle, self._config)
        parts = await loop.run_in_executor(self._threads, build_instances, self._config, bundle, self._progress)
        await self._serve(bundle, parts)
        for instance in self.instances:
            instance.start()
        self._membership = asyncio.create_task(self._stay_registered(), name="membership")
        registered = asyncio.create_task(self._registered.wait())
        try:
            await asyncio.wait({registered, self._membership, self._dead}, return_when=asyncio.FIRST_COMPLETED)
            if self._membership.done():
                self._membership.result()
            if self._dead.done():
                raise EngineError(f"a device loop died before the worker was registered: {self._dead.result()}")
        finally:
            registered.cancel()

    async def wait(self) -> str:
        """Until a device loop dies; returns why. (A lost scheduler is no reason to end.) Raises what ended the membership, if that did."""
        assert self._dead is not None and self._membership is not None, "start first"
        await asyncio.wait({self._dead, self._membership}, return_when=asyncio.FIRST_COMPLETED)
        if not self._dead.done():
            self._membership.result()
        return await self._dead

    async def stop(self, grace: float = 1.0) -> None:
        """Leave the cluster, end what runs, free the port."""
        self._stopping = True
        if self._membership is not None:
            self._membership.cancel()
            await asyncio.gather(self._membership, return_exceptions=True)
        if self._control is not None:
            await self._control.leave()
        if self._server is not None:
            await self._server.stop(grace)
        for instance in self.instances:
            await instance.stop()
        await self._channels.close()
        for transport in self._transports.values():
            transport.close()
        self._threads.shutdown(wait=False)

    # ---- assembly -------------------------------------------------------------------------------------------------------------------

    async def _serve(self, bundle: ModelBundle, parts: list[InstanceParts]) -> None:
        config, loop = self._config, asyncio.get_running_loop()
        interceptors = [] if config.token is None else [bearer_interceptor(config.token)]
        self._server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        port = listen(self._server, config.host, config.port)
        self.address = local_endpoint(config.host, port)
        self._transports = open_transports(
            TransportConfig(config.transports, interface=config.interface),
            hub=LocalHub(),
            channels=self._channels,
            threads=self._threads,
            device=parts[0].mover.devices[0],
        )
        around = Surroundings(
            clock=self._clock,
            loop=loop,
            threads=self._threads,
            transports=self._transports,
            channels=self._channels,
            report=self._report,
            emit=self._outboxes.emit,
            reset=self._on_reset,
            died=self._on_death,
        )
        for part in parts:
            info = self._info(part)
            core = make_core(
                part,
                info,
                max_waiting=config.max_waiting,
                prefix_cache=config.prefix_cache,
                eos_ids=bundle.config.eos_token_ids,
                stop_probe=lambda stops: _TextProbe(stops, bundle.tokenizer),
            )
            self._instances[info.ref.id] = LiveInstance(part, core, info, around)
        bytes_of = self._transports.get(TransportKind.GRPC)
        transfer_pb2_grpc.add_TransferServicer_to_server(
            TransferServicer(
                [instance.producer for instance in self.instances],
                bytes_of if isinstance(bytes_of, GrpcTransport) else None,
                self._threads,
            ),
            self._server,
        )
        worker_pb2_grpc.add_WorkerServicer_to_server(WorkerServicer(self._outboxes, self.instances), self._server)
        await self._server.start()

    def _info(self, part: InstanceParts) -> InstanceInfo:
        config = part.engine.config
        return InstanceInfo(
            ref=InstanceRef(part.plan.id, new_epoch()),
            worker=self._config.name,
            address=self.address,
            roles=part.plan.roles,
            capacity=Capacity(config.max_num_seqs, config.num_pages - 1, config.page_size, config.max_model_len),
            compatibility=Compatibility(
                protocol=PROTOCOL_VERSION,
                model=part.header.model,
                revision=part.header.revision,
                kv_dtype=part.header.dtype,
                page_size=part.header.page_size,
                kv_layout=CHUNK_ORDER,
            ),
            tp=part.plan.tp,
            transports=tuple(self._transports),
            domain=f"{self._config.name}@{self.address}",
        )

    # ---- membership -----------------------------------------------------------------------------------------------------------------

    async def _stay_registered(self) -> None:
        delay = RETRY_FIRST
        while not self._stopping:
            self._lost.clear()
            try:
                await self._register()
            except TriptychError as error:
                if error.status in REFUSED_FOR_GOOD and not self._registered.is_set():
                    raise
                log.warning("cannot register at %s: %s; again in %.1f s", self._config.scheduler, error.message, delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_MOST)
                continue
            since = self._clock.now()
            self._registered.set()
            await self._lost.wait()
            if self._clock.now() - since > STABLE:
                delay = RETRY_FIRST
            else:  # two processes under one name take the registration from each other: not as fast as they can
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_MOST)
            await asyncio.gather(*self._renewals)  # or the old epochs would be registered

    async def _register(self) -> None:
        registered: dict[str, InstanceRef] = {}

        def infos() -> Sequence[InstanceInfo]:
            infos = tuple(instance.info for instance in self.instances)
            registered.update((info.ref.id, info.ref) for info in infos)
            return infos

        control = ControlClient(
            self._config.scheduler,
            self._config.token,
            worker=self._config.name,
            instances=infos,
            loads=lambda: {instance.info.ref: instance.load() for instance in self.instances},
            on_command=self._on_command,
            on_lost=self._on_scheduler_lost,
        )
        await control.connect()
        self._control = control
        for instance in self.instances:
            if instance.info.ref != registered[instance.info.ref.id]:  # reset while nobody could be told
                control.instance_reset(registered[instance.info.ref.id], instance.info, "reset while registering")

    def _on_command(self, ref: InstanceRef, command: TaskCommand) -> None:
        instance = self._instances.get(ref.id)
        if instance is None or instance.info.ref != ref:
            log.warning("dropped %s for %s, which is not an instance here now", type(command).__name__, ref)
            return
        instance.command(command)

    def _on_scheduler_lost(self, reason: str) -> None:
        log.warning("scheduler lost: %s", reason)
        self._control = None
        self._renewals = [instance.abandon(f"the scheduler was lost: {reason}") for instance in self.instances]
        self._lost.set()

    def _report(self, ref: InstanceRef, report: TaskReport) -> None:
        if self._control is not None:
            self._control.report(ref, report)

    def _on_reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None:
        if self._control is not None:
            self._control.instance_reset(old, info, reason)

    def _on_death(self, reason: str) -> None:
        def end() -> None:
            if self._dead is not None and not self._dead.done():
                self._dead.set_result(reason)

        self._channels_loop().call_soon_threadsafe(end)

    def _channels_loop(self) -> asyncio.AbstractEventLoop:
        assert self._dead is not None
        return self._dead.get_loop()


class _TextProbe(StopProbe):
    """Stop strings over the text of one sample, with the same detokeniser and matcher that the gateway shows text with."""

    def __init__(self, stops: tuple[str, ...], tokenizer: Tokenizer | None):
        if tokenizer is None:
            raise InvalidRequestError("stop strings need a tokenizer, and this model has none")
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stops)

    def push(self, token: int) -> str | None:
        return self._matcher.push(self._detokenizer.push(token)).matched

"""The process that owns devices: its instances behind gRPC, registered with the scheduler for as long as both live.

Start: open the model, build every instance (weights, programs), listen, start the device loops, register. From then on commands come from the
scheduler's stream, tokens leave through the gateways' subscriptions, and KV is served to peers. A lost scheduler ends none of this (membership.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from triptych.models.text.detokenizer import Detokenizer
from triptych.models.text.stop import StopMatcher
from triptych.models.text.tokenizer import Tokenizer
from triptych.proto.v1 import transfer_pb2, worker_pb2
from triptych.runtime.core.clock import MonotonicClock
from triptych.runtime.core.errors import EngineError, InstanceLostError, InvalidRequestError
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, TransportKind
from triptych.runtime.instance.termination import StopProbe
from triptych.runtime.transfer.channels import SERVER_OPTIONS, PeerChannels
from triptych.runtime.transfer.service import TransferServicer
from triptych.runtime.transfer.transports import TransportConfig, open_transports
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.grpc import GrpcTransport
from triptych.runtime.transfer.transports.local import LocalHub
from triptych.runtime.wire.auth import bearer_client_interceptors, bearer_interceptor
from triptych.runtime.wire.handlers import service_handler
from triptych.runtime.wire.listening import listen, local_endpoint
from triptych.runtime.worker.build import (
    InstanceParts,
    build_instances,
    build_shared,
    compatibility,
    make_core,
    open_worker_model,
)
from triptych.runtime.worker.config import WorkerConfig
from triptych.runtime.worker.hosts.config import BLAME, HostsConfig
from triptych.runtime.worker.hosts.job import free_port
from triptych.runtime.worker.hosts.leader import Leader
from triptych.runtime.worker.hosts.parts import LeadingHost
from triptych.runtime.worker.hosts.settings import shared_settings
from triptych.runtime.worker.hosts.transport import HostBytes
from triptych.runtime.worker.instance import LiveInstance, new_epoch
from triptych.runtime.worker.media_parts import WorkerModel
from triptych.runtime.worker.membership import Membership
from triptych.runtime.worker.outbox import TokenOutboxes
from triptych.runtime.worker.service import WorkerServicer
from triptych.runtime.worker.surroundings import Surroundings
from triptych.sharding.devices import Device

T = TypeVar("T")

log = logging.getLogger(__name__)

THREADS = 8  # wait for devices and copy bytes; pulls are bounded, so few are ever busy


class WorkerProcess:
    """One per process. `start` returns when it is registered; `wait` ends when it must end; `stop` leaves in good order."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        progress: Callable[[str], None] = log.info,
        renewed: Callable[[InstanceInfo], None] = lambda info: None,
    ):
        """`renewed` is told of every instance that goes on under a new epoch, with the roles that it has then."""
        self._config = config
        self._progress = progress
        self._renewed = renewed
        self._clock = MonotonicClock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="worker")
        self._outboxes = TokenOutboxes()
        self._instances: dict[str, LiveInstance] = {}
        self._transports: Mapping[TransportKind, Transport] = {}
        self._channels = PeerChannels(config.tls, bearer_client_interceptors(config.token))
        self._server: grpc.aio.Server | None = None
        self._membership = Membership(config, lambda: self.instances, self._retire, self._clock)
        self._registering: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._transfer: TransferServicer | None = None
        self._dead: asyncio.Future[str] | None = None  # why a device loop died, or that a host was lost
        self._leader: Leader | None = None
        self._failure: str | None = None  # why it did not start
        self._retired = asyncio.Event()
        self.address = ""
        self._build: Future[Any] | None = None

    @property
    def instances(self) -> Sequence[LiveInstance]:
        return tuple(self._instances.values())

    @property
    def registered(self) -> bool:
        """Whether a scheduler has accepted this worker: before that no device loop answers."""
        return self._membership.registered.is_set()

    @property
    def building(self) -> bool:
        """Whether threads load and compile. They cannot be interrupted, and the interpreter does not exit before they end."""
        return self._build is not None and not self._build.done()

    async def start(self) -> None:
        """Until registered. An unreachable scheduler is waited for; one that refuses this worker for good is an error.

        Raises ConfigError, what loading and compiling raise, InstanceLostError when hosts of the instance are missing or go, and the scheduler's
        refusal; nothing is left running then but what `stop` ends.
        """
        try:
            await self._start()
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise

    async def _start(self) -> None:
        self._dead = asyncio.get_running_loop().create_future()
        model = await self._built(open_worker_model, self._config)
        if self._config.hosts is None:
            parts = await self._built(build_instances, self._config, model, self._progress)
        else:
            host = await self._lead(self._config.hosts, model)
            parts = await self._built(build_shared, self._config, model, self._progress, host)
        await self._serve(model, parts)
        for instance in self.instances:
            instance.start()
        self._registering = asyncio.create_task(self._membership.run(), name="membership")
        registered = asyncio.create_task(self._membership.registered.wait())
        try:
            await asyncio.wait({registered, self._registering, self._dead}, return_when=asyncio.FIRST_COMPLETED)
            if self._registering.done():
                self._registering.result()
            if self._dead.done():
                raise EngineError(f"a device loop died before the worker was registered: {self._dead.result()}")
        finally:
            registered.cancel()

    async def wait(self) -> str | None:
        """Until a device loop dies: returns why. Or until the last instance was retired: returns None, and `stop` is what is left to do.

        A lost scheduler is no reason to end. Raises what ended the membership, if that did.
        """
        assert self._dead is not None and self._registering is not None, "start first"
        retired = asyncio.create_task(self._retired.wait())
        try:
            await asyncio.wait({self._dead, self._registering, retired}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            retired.cancel()
        if self._dead.done():
            return self._dead.result()
        if self._registering.done():
            self._registering.result()
        return None

    async def stop(self, grace: float = 1.0) -> None:
        """Leave the cluster, end what runs, free the port. In order also when `start` was cancelled, whatever it was doing."""
        if self._registering is not None:
            self._registering.cancel()
            await asyncio.gather(self._registering, return_exceptions=True)
        await self._membership.leave("retired" if self._retired.is_set() else "left")
        dead = self._dead is not None and self._dead.done()
        if self._leader is not None and dead:
            # Before anything that waits for the device: collectives wait for hosts that are gone.
            await self._leader.close(self._dead.result(), failed=True)  # pyright: ignore[reportOptionalMemberAccess] - it is done
        if self._server is not None:
            await self._server.stop(grace)
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for instance in self.instances:
            await instance.stop()
        if self._leader is not None and not dead:
            why = self._failure or ("retired" if self._retired.is_set() else "told to end")
            await self._leader.close(why, failed=self._failure is not None)
        await self._channels.close()
        for transport in self._transports.values():
            transport.close()
        self._threads.shutdown(wait=False)

    # ---- assembly -------------------------------------------------------------------------------------------------------------------

    async def _built(self, work: Callable[..., T], *arguments: Any) -> T:
        """What a thread makes of `arguments`, unless a host is lost before: InstanceLostError."""
        assert self._dead is not None
        self._build = self._threads.submit(work, *arguments)
        building = asyncio.wrap_future(self._build)
        await asyncio.wait({building, self._dead}, return_when=asyncio.FIRST_COMPLETED)
        if self._dead.done():
            raise InstanceLostError(self._dead.result())
        return building.result()

    async def _lead(self, hosts: HostsConfig, model: WorkerModel) -> LeadingHost:
        """Wait for the other hosts."""
        config = self._config
        settings = shared_settings(config, model)
        leader = Leader(hosts, settings, self._end, host=config.host, token=config.token, tls=config.tls)
        await leader.open()
        self._leader = leader
        self._progress(f"waiting for {hosts.count - 1} more host(s) at {hosts.leader}")
        port = free_port(config.host)
        await leader.gather(port)
        return LeadingHost(hosts, leader, port, config.host)

    async def _serve(self, model: WorkerModel, parts: list[InstanceParts]) -> None:
        config, bundle, loop = self._config, model.bundle, asyncio.get_running_loop()
        interceptors = [] if config.token is None else [bearer_interceptor(config.token)]
        self._server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        credentials = None if config.tls is None else config.tls.server_credentials()
        port = listen(self._server, config.host, config.port, credentials)
        self.address = local_endpoint(config.host, port)
        opened = self._open_transports(parts[0].mesh.devices.flat[0])
        self._transports = opened if config.link is None else {kind: config.link(opened[kind]) for kind in opened}
        around = Surroundings(
            clock=self._clock,
            loop=loop,
            threads=self._threads,
            transports=self._transports,
            channels=self._channels,
            report=self._membership.report,
            emit=self._outboxes.emit,
            reset=self._reset,
            roles_refused=self._membership.roles_refused,
            died=self._on_death,
            on_step=config.on_step,
        )
        for part in parts:
            info = self._info(part, compatibility(config, model))
            core = make_core(
                part,
                info,
                max_waiting=config.max_waiting,
                prefix_cache=config.prefix_cache,
                composer=config.composer,
                eos_ids=model.eos_ids,
                forbidden_first=() if model.speech is None else model.speech.tokens.suppressed_first,
                stop_probe=lambda stops: _TextProbe(stops, bundle.tokenizer),
                speculation=config.speculation,
            )
            self._instances[info.ref.id] = LiveInstance(part, core, info, around)
        bytes_of = opened.get(TransportKind.GRPC)
        self._transfer = TransferServicer(
            [producer for instance in self.instances for producer in instance.producers],
            bytes_of if isinstance(bytes_of, GrpcTransport) else None,
            self._threads,
        )
        worker = WorkerServicer(self._outboxes, lambda: self.instances)
        self._server.add_generic_rpc_handlers(
            (
                service_handler(self._transfer, transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]),
                service_handler(worker, worker_pb2.DESCRIPTOR.services_by_name["Worker"]),
            )
        )
        await self._server.start()

    def _open_transports(self, device: Device) -> Mapping[TransportKind, Transport]:
        config = self._config
        if config.hosts is not None:
            return {TransportKind.GRPC: HostBytes(self._channels, self._threads)}
        chosen = TransportConfig(
            config.transports,
            interface=config.interface,
            tls=config.tls is not None,
            device_without_tls=config.device_without_tls,
        )
        return open_transports(chosen, hub=LocalHub(), channels=self._channels, threads=self._threads, device=device)

    def _info(self, part: InstanceParts, compatible: Compatibility) -> InstanceInfo:
        config = part.engine.config
        return InstanceInfo(
            ref=InstanceRef(part.plan.id, new_epoch()),
            worker=self._config.name,
            address=self.address,
            roles=part.plan.roles,
            capacity=Capacity(
                config.max_num_seqs,
                config.num_pages - 1,
                config.page_size,
                config.max_model_len,
                media_pages=max(0, config.media_pages - 1),
                max_patches=config.encode_patches,
            ),
            compatibility=compatible,
            tp=part.plan.tp,
            switchable=part.plan.switchable - part.plan.roles,
            transports=tuple(self._transports),
            domain=f"{self._config.name}@{self.address}",
        )

    # ---- ends

    def _retire(self, instance: LiveInstance, reason: str) -> None:
        """An instance goes for good; with the last one the process ends."""
        ref = instance.info.ref
        if len(self._instances) == 1:  # `stop` ends it
            self._retired.set()
            return
        del self._instances[ref.id]

        async def end() -> None:
            await instance.stop()
            assert self._transfer is not None
            self._transfer.forget(ref.id)
            self._membership.left(ref, reason)

        task = asyncio.get_running_loop().create_task(end(), name=f"retiring {ref.id}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _reset(self, old: InstanceRef, info: InstanceInfo, reason: str) -> None:
        self._renewed(info)
        self._membership.reset(old, info, reason)

    def _on_death(self, reason: str) -> None:
        """A device loop died. From any thread."""
        assert self._dead is not None
        loop = self._dead.get_loop()
        loop.call_soon_threadsafe(loop.call_later, 0.0 if self._leader is None else BLAME, self._end, reason)

    def _end(self, reason: str) -> None:
        if self._dead is not None and not self._dead.done():
            self._dead.set_result(reason)


class _TextProbe(StopProbe):
    """Stop strings over the text of one sample, with the same detokeniser and matcher that the gateway shows text with."""

    def __init__(self, stops: tuple[str, ...], tokenizer: Tokenizer | None):
        if tokenizer is None:
            raise InvalidRequestError("stop strings need a tokenizer, and this model has none")
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stops)

    def push(self, token: int) -> str | None:
        return self._matcher.push(self._detokenizer.push(token)).matched

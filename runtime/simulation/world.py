"""A whole virtual cluster: one event loop, one network, and processes that can be killed, stopped and started again by name.

Every random choice comes from generators that are seeded from one seed and handed out by purpose, so that a change in one place of a world does
not change the luck of all others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Role, TransportKind
from triptych.runtime.core.request import Request
from triptych.runtime.instance.composer import DefaultComposer, TakingTurns
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.termination import StopProbe
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.device import Device, KvDevice
from triptych.runtime.simulation.events import EventLoop, Process
from triptych.runtime.simulation.gateway import Client, GatewayConfig, SimGateway, client_of
from triptych.runtime.simulation.instance import Parts
from triptych.runtime.simulation.network import Network, NetworkConfig
from triptych.runtime.simulation.scheduler import SimScheduler, Witness
from triptych.runtime.simulation.timing import AffineStepTime, StepTime
from triptych.runtime.simulation.transfer import TransferConfig
from triptych.runtime.simulation.worker import SimWorker, WorkerConfig

SCHEDULER = "scheduler"


@dataclass(frozen=True)
class InstanceShape:
    """One instance: what it does, how large it is, and on which worker it lives. Fields as in InstanceConfig."""

    id: str
    roles: frozenset[Role]
    worker: str
    num_pages: int = 64
    page_size: int = 4
    max_num_seqs: int = 8
    max_model_len: int = 64
    chunk_tokens: int = 16
    max_prefill_rows: int = 4
    max_waiting: int = 64
    export_pages: int = 2
    eos_ids: tuple[int, ...] = (0,)
    prefix_cache: bool = True
    media_pages: int = 0
    encode_patches: int = 0
    switchable: frozenset[Role] = frozenset({Role.PREFILL, Role.DECODE})
    taking_turns: bool = False


@dataclass(frozen=True)
class WorldConfig:
    """What a world consists of. `make_scheduler` is called for every life of the scheduler."""

    instances: tuple[InstanceShape, ...]
    gateways: tuple[str, ...] = ("gateway-0",)
    seed: int = 0
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    make_scheduler: Callable[[SchedulerConfig], Scheduler] = Scheduler
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    step_time: StepTime = field(default_factory=AffineStepTime)
    make_device: Callable[[InstanceConfig], Device] = KvDevice

    @cached_property
    def workers(self) -> tuple[str, ...]:
        """Names of the worker processes, in order of their first instance."""
        return tuple(dict.fromkeys(shape.worker for shape in self.instances))


class World:
    """Owner of everything. `start`, feed it with `submit_at` and what befalls it, and run its loop. `witness` sees what every scheduler does."""

    def __init__(self, config: WorldConfig, witness: Witness | None = None):
        self.config = config
        self._witness = witness
        self.loop = EventLoop()
        self.network = Network(self.loop, config.network, self.luck("network"))
        self.processes: dict[str, Process] = {}
        self.clients: list[Client] = []
        self._epochs = self.luck("epochs")
        self._lives: dict[str, int] = {}
        self._shapes = {shape.id: shape for shape in config.instances}

    def luck(self, purpose: str) -> random.Random:
        """A generator of its own for `purpose`."""
        return random.Random(f"{self.config.seed}/{purpose}")

    # ---- processes

    @property
    def scheduler(self) -> SimScheduler | None:
        """The living scheduler."""
        process = self.processes.get(SCHEDULER)
        return process if isinstance(process, SimScheduler) and process.alive else None

    @property
    def workers(self) -> list[SimWorker]:
        """Living workers."""
        return [p for p in self.processes.values() if isinstance(p, SimWorker) and p.alive]

    @property
    def gateways(self) -> list[SimGateway]:
        """Living gateways."""
        return [p for p in self.processes.values() if isinstance(p, SimGateway) and p.alive]

    def start(self) -> None:
        """Start every process."""
        for name in (SCHEDULER, *self.config.workers, *self.config.gateways):
            self.spawn(name)

    def spawn(self, name: str) -> None:
        """Start the process called `name`, unless it is alive."""
        old = self.processes.get(name)
        if old is not None and old.alive:
            return
        life = self._lives[name] = self._lives.get(name, 0) + 1
        luck, config = self.luck(f"{name}/{life}"), self.config
        process: SimScheduler | SimGateway | SimWorker
        if name == SCHEDULER:
            process = SimScheduler(name, config.make_scheduler(config.scheduler), self.network, witness=self._witness)
        elif name in config.gateways:
            process = SimGateway(name, self.network, scheduler=SCHEDULER, config=config.gateway, source=luck)
        else:
            process = SimWorker(
                name,
                [self._parts(shape, luck) for shape in config.instances if shape.worker == name],
                self.network,
                scheduler=SCHEDULER,
                config=config.worker,
                transfer=config.transfer,
                source=luck,
                epochs=self._new_epoch,
            )
        self.processes[name] = process
        process.start()

    def kill(self, name: str) -> None:
        """SIGKILL: its kernel closes its connections."""
        process = self.processes[name]
        if process.alive:
            process.kill()
            self.network.bury(process)
            self._disappoint(name)

    def vanish(self, name: str) -> None:
        """Its host loses power: nobody closes anything."""
        process = self.processes[name]
        if process.alive:
            process.kill()
            self.network.vanish(process)
            self._disappoint(name)

    def terminate(self, name: str) -> None:
        """SIGTERM: workers and gateways say good-bye; a scheduler just ends."""
        process = self.processes[name]
        if isinstance(process, SimWorker | SimGateway):
            process.happen(self._say_goodbye, process)
        else:
            self.kill(name)

    def _say_goodbye(self, process: SimWorker | SimGateway) -> None:
        process.leave("left")
        self._disappoint(process.name)

    def pause(self, name: str) -> None:
        process = self.processes[name]
        if process.alive and not process.paused:
            process.pause()
            self.network.freeze(process)

    def _new_epoch(self) -> int:
        return self._epochs.getrandbits(62) + 1

    def _parts(self, shape: InstanceShape, luck: random.Random) -> Parts:
        ref = InstanceRef(shape.id, self._new_epoch())
        digest, media = f"kv/{shape.page_size}", f"media/{shape.page_size}" if shape.media_pages else ""
        config = InstanceConfig(
            ref=ref,
            address=shape.worker,
            digest=digest,
            roles=shape.roles,
            num_pages=shape.num_pages,
            page_size=shape.page_size,
            max_num_seqs=shape.max_num_seqs,
            max_model_len=shape.max_model_len,
            chunk_tokens=shape.chunk_tokens,
            max_prefill_rows=shape.max_prefill_rows,
            max_waiting=shape.max_waiting,
            export_pages=shape.export_pages,
            eos_ids=shape.eos_ids,
            prefix_cache=shape.prefix_cache,
            switchable=shape.switchable - shape.roles,
            media_pages=shape.media_pages,
            encode_patches=shape.encode_patches,
            media_digest=media,
        )
        composer = TakingTurns() if shape.taking_turns else DefaultComposer()
        core = InstanceCore(config, stop_probe=_no_probe, random=random.Random(luck.getrandbits(64)), composer=composer)
        info = InstanceInfo(
            ref=ref,
            worker=shape.worker,
            address=shape.worker,
            roles=shape.roles,
            capacity=Capacity(
                shape.max_num_seqs,
                shape.num_pages - 1,
                shape.page_size,
                shape.max_model_len,
                max(0, shape.media_pages - 1),
                shape.encode_patches,
            ),
            compatibility=Compatibility(1, "simulated", "1", "token", shape.page_size, digest),
            transports=(TransportKind.LOCAL, TransportKind.GRPC),
            domain=shape.worker,
            switchable=shape.switchable - shape.roles,
        )
        return Parts(info, core, self.config.make_device(config), self.config.step_time, digest, media)

    def shape(self, instance: str) -> InstanceShape:
        """The shape of an instance."""
        return self._shapes[instance]

    # ---- clients

    def submit_at(self, when: float, request: Request) -> Client:
        """Have a client make `request` (request.gateway says where) at `when`."""
        client = client_of(request, when)
        self.clients.append(client)
        self.loop.at(when, None, self._submit, client)
        return client

    def _submit(self, client: Client) -> None:
        gateway = self.processes.get(client.gateway)
        if isinstance(gateway, SimGateway) and gateway.alive:
            gateway.happen(gateway.submit, client)
        else:
            client.lose_gateway(self.loop.now())

    def _disappoint(self, gateway: str) -> None:
        """Clients of a gateway that died lose their connection, also those that it has not noticed yet."""
        for client in self.clients:
            if client.gateway == gateway and client.began <= self.loop.now():
                client.lose_gateway(self.loop.now())

    def leave_at(self, when: float, client: Client) -> None:
        """Have a client go away at `when`, if it is still there."""
        self.loop.at(when, None, self._leave, client)

    def _leave(self, client: Client) -> None:
        gateway = self.processes.get(client.gateway)
        if isinstance(gateway, SimGateway):
            gateway.happen(gateway.disconnect, client)


def _no_probe(stops: tuple[str, ...]) -> StopProbe:
    raise ValueError(f"a simulated model has no text, so stop strings ({stops}) cannot be found; use stop_token_ids")

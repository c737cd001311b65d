"""The real scheduler over real instance cores, fake devices and wires that lose things: what each side believes of the other's protocol shows."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.fake_device import expected_outputs
from tests.runtime.instance.media_wires import Wires, seen_samples
from tests.runtime.scheduler.world import COMPATIBLE
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Declare,
    Failed,
    GatewayJoined,
    GatewayNotice,
    Heartbeat,
    InstanceLoad,
    InstanceReset,
    Interrupted,
    MediaNeeded,
    Reported,
    Resume,
    SchedulerEvent,
    SchedulerTick,
    Submit,
    ToGateway,
    ToInstance,
    WorkerJoined,
    WorkerLost,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Capacity, InstanceInfo, InstanceRef, Role
from triptych.runtime.core.request import Request, SampleState, TokenOut
from triptych.runtime.core.tasks import TaskCommand
from triptych.runtime.instance.messages import Command, Tick
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.scheduler import Scheduler

GATEWAY = "gw"
CONFIG = SchedulerConfig(pixel_ttl=3.0, lease_seconds=6.0, drain_grace=2.0)


@dataclass
class Client:
    """One request as its gateway knows it."""

    request: Request
    tokens: dict[int, dict[int, TokenOut]] = field(default_factory=lambda: defaultdict(dict))
    over: Failed | Completed | None = None

    @property
    def status(self) -> Status | None:
        return self.over.status if isinstance(self.over, Failed) else None if self.over is None else Status.OK

    def seen(self) -> tuple[SampleState, ...]:
        """All samples up to the first gap of each."""
        return seen_samples(self.request, self.tokens)


class Served(Wires):
    """Each instance is a worker's only one. Commands, reports and notices keep their order; nothing else does."""

    def __init__(self, nodes: list[Node], luck: random.Random, trouble: float = 0.0):
        super().__init__(nodes, luck, trouble)
        self.now = 0.0
        self.clients: dict[str, Client] = {}
        self.commands: dict[Node, deque[TaskCommand]] = {node: deque() for node in nodes}
        self.notices: deque[GatewayNotice] = deque()
        self.connected = set(nodes)
        self.boot()

    # ---- the scheduler

    def boot(self) -> None:
        """A scheduler that knows nothing; everybody registers with what they hold."""
        self.scheduler = Scheduler(CONFIG)
        self.notices.clear()
        self.say(GatewayJoined(GATEWAY))
        for client in self.clients.values():
            if client.over is None:
                self.say(Declare(client.request))
        for node in self.nodes:
            self.join(node)

    def say(self, event: SchedulerEvent) -> None:
        by_ref = {node.core.ref: node for node in self.nodes}
        for command in self.scheduler.handle(event, self.now):
            match command:
                case ToInstance() if command.ref in by_ref and by_ref[command.ref] in self.connected:
                    self.commands[by_ref[command.ref]].append(command.command)
                case ToGateway():
                    self.notices.append(command.notice)
        self.scheduler.audit()
        assert self.scheduler.counters["protocol_violations"] == 0

    def info(self, node: Node) -> InstanceInfo:
        cfg = node.config
        media = max(0, cfg.media_pages - 1)
        patches = cfg.encode_patches if Role.ENCODE in cfg.roles else 0
        capacity = Capacity(cfg.max_num_seqs, cfg.num_pages, cfg.page_size, cfg.max_model_len, media, patches)
        return InstanceInfo(node.core.ref, f"w-{cfg.ref.id}", cfg.address, cfg.roles, capacity, COMPATIBLE)

    def join(self, node: Node) -> None:
        """A new stream; what was on its way on the old one is lost."""
        self.commands[node].clear()
        self.reports[node].clear()
        self.connected.add(node)
        info = self.info(node)
        self.say(WorkerJoined(info.worker, (info,), node.core.held()))

    # ---- what tests do

    def submit(self, request: Request) -> None:
        made = replace(request, gateway=GATEWAY)
        self.clients[made.id] = Client(made)
        self.say(Submit(made))

    def cancel(self, name: str) -> None:
        if self.clients[name].over is None:
            self.say(Cancel(name, "the client went away"))

    def cut(self, node: Node) -> None:
        """The stream breaks; the instance goes on."""
        self.connected.discard(node)
        self.commands[node].clear()
        self.say(WorkerLost(self.info(node).worker, "cut"))

    def lose(self, node: Node) -> None:
        """The pools are gone; what was on its way never arrives."""
        old = node.core.ref
        node.results.clear()
        for page in (*node.device.pages, *node.device.embeddings):
            page[:] = [None] * len(page)
        node.device.slots.clear()
        self.commands[node].clear()
        for message in node.core.reset(InstanceRef(old.id, old.epoch + 1)):
            node.obey(message)
            self.route(node, message)
        self.reports[node].clear()
        if node in self.connected:
            info = self.info(node)
            self.say(InstanceReset(info.worker, old, info, "lost its pools"))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes:
            node.now = self.now
            self.send(node, Tick())
            if node in self.connected:
                load = InstanceLoad(node.core.ref, node.core.load())
                self.say(Heartbeat(self.info(node).worker, (load,)))
        self.say(SchedulerTick())

    def act(self) -> None:
        """One thing happens, whichever."""
        node = self.luck.choice(self.nodes)
        match self.luck.randrange(7):
            case 0:
                self.deliver(node)
            case 1:
                self.report(node)
            case 2 if self.pixels:
                self.bring(self.pixels.pop(self.luck.randrange(len(self.pixels))))
            case 3 if self.pulls:
                self.move(self.luck.choice(self.pulls))
            case 4:
                self.ready(node)
            case 5:
                self.hear()
            case _:
                self.done(node)

    def settle(self) -> None:
        """Everything that can happen without time passing does."""
        for _ in range(4000):
            moved = False
            for node in self.nodes:
                while self.deliver(node) or self.report(node):
                    moved = True
                before = node.device.last_plan
                self.ready(node)
                moved |= before != node.device.last_plan or bool(node.results)
                self.done(node)
            while self.hear():
                moved = True
            while self.pixels:
                moved = True
                self.bring(self.pixels.pop(0))
            for pull in list(self.pulls):
                moved |= pull in self.pulls and self.move(pull)
            if not moved:
                return
        raise AssertionError("the cluster does not come to rest")

    def finish(self) -> None:
        """No more trouble: everything comes to an end, and then nothing is held anywhere."""
        self.trouble = 0.0
        for node in self.nodes:
            if node not in self.connected:
                self.join(node)
        for _ in range(120):
            self.settle()
            idle = self.scheduler.idle and all(node.core.resources().idle for node in self.nodes)
            if idle and all(client.over is not None for client in self.clients.values()):
                break
            self.advance(1.0)
        stuck = {name: client.request.attempt for name, client in self.clients.items() if client.over is None}
        assert not stuck, stuck
        held = self.scheduler.resources()
        assert self.scheduler.idle and held.tasks == held.assigned == held.wanting == held.timers == 0
        for node in self.nodes:
            assert node.core.resources().idle, node.core.resources()
            assert not node.device.shelf
        for client in self.clients.values():
            self.check(client)

    def check(self, client: Client) -> None:
        """What was given is right, and if the request ended well it is all."""
        request = client.request
        longest = min(node.config.max_model_len for node in self.nodes)
        for sample in range(request.sampling.n):
            outputs, finish = expected_outputs(request, longest, sample)
            tokens = [client.tokens[sample][position] for position in sorted(client.tokens[sample])]
            for token in tokens:
                assert token.token == outputs[token.position - len(request.prompt)]
            if client.status is Status.OK:
                assert [token.token for token in tokens] == outputs and tokens[-1].finish == finish

    # ---- deliveries

    def deliver(self, node: Node) -> bool:
        if not self.commands[node]:
            return False
        self.send(node, Command(self.commands[node].popleft()))
        return True

    def report(self, node: Node) -> bool:
        if node not in self.connected:
            self.reports[node].clear()
        if not self.reports[node]:
            return False
        self.say(Reported(node.core.ref, self.reports[node].popleft()))
        return True

    def hear_token(self, token: TokenOut) -> None:
        client = self.clients[token.request]
        if client.over is None and token.attempt == client.request.attempt:
            client.tokens[token.sample][token.position] = token

    def hear(self) -> bool:
        """The gateway's next notice."""
        if not self.notices:
            return False
        notice = self.notices.popleft()
        match notice:
            case Failed() | Completed():
                client = self.clients[notice.request]
                if client.over is None:
                    client.over = notice
            case Interrupted():
                client = self.clients[notice.request]
                if client.over is None and notice.attempt > client.request.attempt:
                    samples = client.seen()
                    client.request = replace(client.request, attempt=notice.attempt)
                    self.say(Resume(client.request, samples))
            case MediaNeeded():
                client = self.clients[notice.request]
                node = next((node for node in self.nodes if node.core.ref == notice.encode), None)
                if client.over is None and notice.attempt == client.request.attempt and node is not None:
                    assert notice.address == node.config.address
                    self.pixels += [(node, client.request.media[item].hash) for item in notice.items]
            case _:
                pass
        return True

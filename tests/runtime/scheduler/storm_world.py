"""The world of a storm as long as nothing goes wrong: instances, gateways and a scheduler whose messages are delivered one by one, in any order
between connections.
"""

from __future__ import annotations

import random
from dataclasses import replace

from tests.runtime.scheduler.fake_instance import FakeInstance, Key, Staging
from tests.runtime.scheduler.storm_peers import Gateway, Node
from tests.runtime.scheduler.world import Driver, audio, image, info, request, seen
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Declare,
    Directory,
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
    Retire,
    SchedulerEvent,
    SetRoles,
    SetShare,
    Submit,
    WorkerJoined,
)
from triptych.runtime.core.instance import InstanceRef, Load, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.request import Request
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.policies.queue_order import QUEUE_ORDERS
from triptych.runtime.scheduler.policies.router import ROUTERS
from triptych.runtime.scheduler.scheduler import Scheduler

CONFIG = SchedulerConfig(max_queued=6, max_active=12, lookahead=3, drain_grace=2.0)
TEXT = (("p", "d"), ("pd",), ("p", "p", "d", "d"), ("p", "d", "pd"), ("p", "pd"), ("pd", "pd", "d"))
MEDIA = (
    ("e", "p", "d"),
    ("epd",),
    ("ep", "d"),
    ("e", "pd"),
    ("e", "e", "p", "d", "d"),
    ("e", "ep", "p", "d"),
    ("ed", "p"),
    ("e", "e", "epd", "pd"),
)


class StormWorld:
    """`severity` scales how often things go wrong; at 0 nothing does, and deadlines are far away. With `media` there are encode instances, and half of
    the requests have media."""

    def __init__(self, seed: int, severity: float, media: bool = False):
        self.random = random.Random(seed)
        self.severity = severity
        self.media = media
        self.staging = Staging()
        self.nodes: dict[InstanceRef, Node] = {}
        self.gateways: dict[str, Gateway] = {}
        self.ends: dict[str, Failed | Completed] = {}  # by request, as its gateway heard them
        self.owed: set[str] = set()  # requests whose gateway lives and must hear an end
        self.epoch = 0
        self.serial = 0
        self.workers: dict[str, list[InstanceRef]] = {}
        self.boot()
        one_worker = self.random.random() < 0.3
        for name in ("g0", "h0"):
            self.connect_gateway(Gateway(name))
        for i, kind in enumerate(self.random.choice(MEDIA if media else TEXT)):
            worker = "w" if one_worker else f"w-{kind}{i}"
            node = self.fresh(f"{kind}{i}", kind, worker)
            self.nodes[node.fake.info.ref] = node
            self.workers.setdefault(worker, []).append(node.fake.info.ref)
        for worker in self.workers:
            self.join(worker)

    # ---- the scheduler

    def boot(self) -> None:
        """A scheduler that knows nothing; time goes on."""
        router, order = self.random.choice(list(ROUTERS.values())), self.random.choice(list(QUEUE_ORDERS.values()))
        clock = self.world.clock if hasattr(self, "world") else None
        self.world = Driver(Scheduler(CONFIG, router(), order()))
        if clock is not None:
            self.world.clock = clock
        self.said = 0
        self.told: dict[str, int] = {}
        self.ordered = 0

    def send(self, event: SchedulerEvent) -> None:
        self.world.send(event)
        for command in self.world.commands[self.said :]:
            node = self.nodes.get(command.ref)
            if node is not None and node.connected:
                node.inbox.append(command.command)
        self.said = len(self.world.commands)
        for name, notices in self.world.notices.items():
            gateway = self.gateways.get(name)
            if gateway is not None and gateway.connected:
                gateway.inbox.extend(notices[self.told.get(name, 0) :])
            self.told[name] = len(notices)
        drops, self.world.drops = self.world.drops, []
        for drop in drops:
            self.cut_worker(drop.worker)
        orders = self.world.orders[self.ordered :]
        self.ordered = len(self.world.orders)
        for order in orders:
            node = self.nodes.get(order.command.ref)
            if node is not None and node.connected and not isinstance(order.command, SetShare):
                node.inbox.append(order.command)
        self.audit()

    def audit(self) -> None:
        held = self.world.scheduler.resources()
        assert held.tasks == held.assigned
        counters = self.world.scheduler.counters
        assert counters["submitted"] == counters["admitted"] + counters["refused"]
        closed = counters["completed"] + counters.failed
        known = counters["admitted"] + counters["declared"]
        assert 0 <= known - closed <= held.records, "open requests are records; records may outlive their notice"
        assert counters["protocol_violations"] == 0, "honest instances break no rule"

    # ---- the cluster

    def fresh(self, name: str, kind: str, worker: str) -> Node:
        self.epoch += 1
        made = info(name, kind, worker=worker, epoch=self.epoch, switchable="pd")
        if self.media:
            able = info(name, kind, switchable="epd", media_pages=9, max_patches=100)
            made = replace(made, capacity=able.capacity, switchable=able.switchable)
        return Node(FakeInstance(made, self.staging, slots=self.random.randint(1, 4)))

    def again(self, node: Node, roles: frozenset[Role] | None = None) -> Node:
        """The same instance after a loss: empty, with a new epoch."""
        self.epoch += 1
        old = node.fake.info
        new = replace(old, ref=InstanceRef(old.ref.id, self.epoch), roles=roles or old.roles)
        successor = Node(FakeInstance(new, self.staging, node.fake.slots), connected=node.connected)
        node.fake.die()
        node.cut()
        del self.nodes[old.ref]
        self.nodes[new.ref] = successor
        owned = self.workers[old.worker]
        owned[owned.index(old.ref)] = new.ref
        return successor

    def join(self, worker: str) -> None:
        """A new stream of `worker`, with all that it holds."""
        nodes = [self.nodes[ref] for ref in self.workers[worker]]
        held = tuple(task for node in nodes for task in node.fake.held())
        for node in nodes:
            node.cut()
            node.connected = True
        self.send(WorkerJoined(worker, tuple(node.fake.info for node in nodes), held))

    def cut_worker(self, worker: str) -> None:
        for ref in self.workers[worker]:
            self.nodes[ref].cut()

    def obey(self, node: Node) -> None:
        """The next command of `node`."""
        command = node.inbox.popleft()
        if isinstance(command, SetRoles):
            assert not node.fake.tasks, "told to change with tasks"
            successor = self.again(node, command.roles).fake.info
            self.send(InstanceReset(successor.worker, command.ref, successor, "roles changed"))
        elif not isinstance(command, Retire):
            node.say(node.fake.handle(command))

    def connect_gateway(self, gateway: Gateway) -> None:
        """A new stream: hello, then everything that is open."""
        self.gateways[gateway.name] = gateway
        gateway.cut()
        gateway.connected = True
        self.send(GatewayJoined(gateway.name))
        gateway.outbox.extend(Declare(one, unheard=self.random.random() < 0.3) for one in gateway.open.values())

    # ---- what happens without fault

    def any_node(self) -> Node:
        return self.random.choice(list(self.nodes.values()))

    def any_gateway(self) -> Gateway:
        return self.random.choice(list(self.gateways.values()))

    def submit(self) -> None:
        gateway = self.any_gateway()
        if not gateway.connected:
            return
        self.serial += 1
        name = f"r{self.serial}"
        deadline = self.world.clock.now() + (self.random.choice([2.0, 10.0, 60.0]) if self.severity else 1e6)
        # 45 is refused for good by instances, 70 is longer than every context
        prompt = self.random.choice([1, 4, 4, 4, 45, 70])
        n = self.random.choice([1, 1, 3])
        priority = self.random.randint(0, 2)
        media = self.some_media() if self.media and self.random.random() < 0.5 else ()
        made = request(
            name, prompt=prompt, gateway=gateway.name, deadline=deadline, priority=priority, n=n, media=media
        )
        gateway.open[name] = made
        self.owed.add(name)
        gateway.outbox.append(Submit(made))

    def some_media(self) -> tuple[MediaItem, ...]:
        """Of a few images and recordings, so that they come again; "large" is refused by every instance, "huge" is above what any declares."""
        large = [image("large", patches=95)] if self.random.random() < 0.1 else []
        huge = [image("huge", patches=500)] if self.severity and self.random.random() < 0.05 else []
        count = self.random.choice([1, 1, 2, 5])
        images = [image(f"h{self.random.randint(0, 9)}", patches=16) for _ in range(count)]
        heard = [audio(f"a{self.random.randint(0, 4)}") for _ in range(self.random.choice([0, 0, 1, 2]))]
        return (*heard, *(images if not heard or self.random.random() < 0.4 else ()), *large, *huge)

    def deliver_command(self) -> None:
        node = self.any_node()
        if node.inbox and not node.hung:
            self.obey(node)

    def deliver_report(self) -> None:
        node = self.any_node()
        if node.outbox:
            self.send(Reported(node.fake.info.ref, node.outbox.popleft()))

    def hear_gateway(self) -> None:
        gateway = self.any_gateway()
        if gateway.connected and gateway.outbox:
            self.send(gateway.outbox.popleft())

    def tell_gateway(self) -> None:
        gateway = self.any_gateway()
        if gateway.inbox:
            self.notice(gateway, gateway.inbox.popleft())

    def notice(self, gateway: Gateway, notice: GatewayNotice) -> None:
        """What an honest gateway does."""
        if isinstance(notice, Directory):
            return
        known = gateway.open.get(notice.request)
        if isinstance(notice, Failed | Completed):
            if known is not None:  # else its own Declare or Resume had crossed the end that it heard before
                self.ends[notice.request] = notice
                del gateway.open[notice.request]
        elif known is None:
            gateway.outbox.append(Cancel(notice.request, "no such request"))
        elif isinstance(notice, MediaNeeded):
            self.bring(known, notice)
        elif isinstance(notice, Interrupted) and notice.attempt > known.attempt:
            self.resume(gateway, known, notice.attempt)

    def bring(self, known: Request, notice: MediaNeeded) -> None:
        """The pixels are there at once, or never if things go wrong."""
        node = self.nodes.get(notice.encode)
        lost = self.random.random() < 0.2 * self.severity
        if node is not None and notice.attempt == known.attempt and not lost:
            node.fake.pixels |= {known.media[item].hash for item in notice.items}

    def resume(self, gateway: Gateway, known: Request, attempt: int) -> None:
        gateway.open[known.id] = replace(known, attempt=attempt)
        counts = [self.random.choice([0, 0, 3, -2]) for _ in range(known.sampling.n)]
        samples = seen(*counts, n=known.sampling.n) if any(counts) else ()
        gateway.outbox.append(Resume(gateway.open[known.id], samples))

    def some_task(self) -> tuple[Node, Key] | None:
        node = self.any_node()
        if node.hung or not node.fake.tasks:
            return None
        return node, self.random.choice(list(node.fake.tasks))

    def work(self) -> None:
        if (task := self.some_task()) is not None:
            node, key = task
            node.say(node.fake.advance(key, finish_early=self.random.random() < 0.2))

    def tick(self) -> None:
        if not self.severity:
            self.heartbeat()
        self.world.clock.advance(self.random.choice([0.05, 0.1, 0.5]))
        self.world_tick()

    def world_tick(self) -> None:
        self.world.tick()
        self.send(Heartbeat("nobody"))  # collect what the tick said

    def heartbeat(self) -> None:
        for worker, refs in self.workers.items():
            nodes = [self.nodes[ref] for ref in refs]
            if nodes and all(n.connected and not n.hung for n in nodes):
                loads = (
                    InstanceLoad(n.fake.info.ref, Load(running=len(n.fake.tasks), free_pages=9, free_slots=1))
                    for n in nodes
                )
                self.send(Heartbeat(worker, tuple(loads)))

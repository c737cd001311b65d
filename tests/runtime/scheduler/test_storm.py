"""Whatever instances, gateways and clients do: one terminal notice for every admitted request, and nothing is held in the end.

A seeded storm over simulated instances. Commands to an instance and reports from it keep their order (each is one stream); between
instances any interleaving happens, because every delivery is a random choice. After the storm the weather clears: instances go on
honestly, deadlines pass for what is stuck, and the books must balance.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.scheduler.fake_instance import FakeInstance, Staging
from tests.runtime.scheduler.world import Driver, info, request
from triptych.runtime.core.control import (
    Cancel,
    Completed,
    Failed,
    GatewayJoined,
    GatewayLost,
    Heartbeat,
    InstanceLoad,
    InstanceReset,
    Reported,
    Submit,
    WorkerJoined,
    WorkerLost,
)
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Load, Role
from triptych.runtime.core.tasks import TaskCommand, TaskReport
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.policies.queue_order import QUEUE_ORDERS
from triptych.runtime.scheduler.policies.router import ROUTERS
from triptych.runtime.scheduler.scheduler import Scheduler

CONFIG = SchedulerConfig(max_queued=6, max_active=12, lookahead=3)
TOPOLOGIES = (("p", "d"), ("pd",), ("p", "p", "d", "d"), ("p", "d", "pd"), ("p", "pd"), ("pd", "pd", "d"))


@dataclass
class Node:
    """An instance with its two streams, and its worker (one instance a worker, or all on one)."""

    fake: FakeInstance
    inbox: deque[TaskCommand] = field(default_factory=deque)
    outbox: deque[TaskReport] = field(default_factory=deque)
    hung: bool = False


class Storm:
    """`severity` scales how often things go wrong; at 0 nothing does, and deadlines are far away."""

    def __init__(self, seed: int, severity: float):
        self.random = random.Random(seed)
        self.severity = severity
        self.world = Driver(
            Scheduler(
                CONFIG, self.random.choice(list(ROUTERS.values()))(), self.random.choice(list(QUEUE_ORDERS.values()))()
            )
        )
        self.staging = Staging()
        self.nodes: dict[InstanceRef, Node] = {}
        self.gateways = {"g": 0, "h": 0}  # lives
        self.connected: set[str] = set()
        self.owner: dict[str, tuple[str, int]] = {}  # request -> gateway and its life at submission
        self.forsaken: set[str] = set()
        self.epoch = 0
        self.serial = 0
        self.delivered = 0
        one_worker = self.random.random() < 0.3
        for gateway in self.gateways:
            self.world.send(GatewayJoined(gateway))
            self.connected.add(gateway)
        members = [
            self.fresh(f"{kind}{i}", kind, "w" if one_worker else f"w-{kind}{i}")
            for i, kind in enumerate(self.random.choice(TOPOLOGIES))
        ]
        self.join(members)

    # ---- the cluster

    def fresh(self, name: str, kind: str, worker: str) -> Node:
        self.epoch += 1
        return Node(
            FakeInstance(
                info(name, kind, worker=worker, epoch=self.epoch), self.staging, slots=self.random.randint(1, 4)
            )
        )

    def again(self, node: Node) -> Node:
        self.epoch += 1
        old = node.fake.info
        return Node(FakeInstance(replace(old, ref=InstanceRef(old.ref.id, self.epoch)), self.staging, node.fake.slots))

    def join(self, members: list[Node]) -> None:
        workers: dict[str, list[Node]] = {}
        for node in members:
            workers.setdefault(node.fake.info.worker, []).append(node)
            self.nodes[node.fake.info.ref] = node
        for worker, owned in workers.items():
            self.send(WorkerJoined(worker, tuple(n.fake.info for n in owned)))

    def send(self, event) -> None:
        self.world.send(event)
        for command in self.world.commands[self.delivered :]:
            if command.ref in self.nodes:
                self.nodes[command.ref].inbox.append(command.command)
        self.delivered = len(self.world.commands)
        self.audit()

    def audit(self) -> None:
        held = self.world.scheduler.resources()
        assert held.tasks == held.assigned
        counters = self.world.scheduler.counters
        assert counters["submitted"] == counters["admitted"] + counters["refused"]
        closed = counters["completed"] + counters.failed
        assert 0 <= counters["admitted"] - closed <= held.records, (
            "open requests are records; records may outlive their notice"
        )
        assert held.queued <= CONFIG.max_queued + CONFIG.max_active
        assert counters["protocol_violations"] == 0, "honest instances break no rule"

    # ---- what may happen

    def step(self) -> None:
        happenings = (
            (self.submit, 10.0),
            (self.deliver_command, 30.0),
            (self.deliver_report, 30.0),
            (self.work, 30.0),
            (self.tick, 5.0),
            (self.heartbeat, 10.0),
            (self.cancel, 3.0 * self.severity),
            (self.fail_task, 2.0 * self.severity),
            (self.hang, 0.5 * self.severity),
            (self.kill_worker, 1.0 * self.severity),
            (self.reset_instance, 1.0 * self.severity),
            (self.lose_gateway, 1.0 * self.severity),
        )
        chosen = self.random.choices([h for h, _ in happenings], [weight for _, weight in happenings])[0]
        chosen()

    def any_node(self) -> Node | None:
        return self.random.choice(list(self.nodes.values())) if self.nodes else None

    def submit(self) -> None:
        gateway = self.random.choice(list(self.gateways))
        if gateway not in self.connected:
            return
        self.serial += 1
        name = f"r{self.serial}"
        self.owner[name] = (gateway, self.gateways[gateway])
        deadline = self.world.clock.now() + (self.random.choice([1.0, 5.0, 30.0]) if self.severity else 1e6)
        prompt = self.random.choice(
            [1, 4, 4, 4, 45, 70]
        )  # 45: refused for good by instances; 70: longer than every context
        self.send(
            Submit(request(name, prompt=prompt, gateway=gateway, deadline=deadline, priority=self.random.randint(0, 2)))
        )

    def deliver_command(self) -> None:
        node = self.any_node()
        if node is not None and node.inbox and not node.hung:
            node.outbox.extend(node.fake.handle(node.inbox.popleft()))

    def deliver_report(self) -> None:
        node = self.any_node()
        if node is not None and node.outbox:
            self.send(Reported(node.fake.info.ref, node.outbox.popleft()))

    def some_task(self) -> tuple[Node, str, Role] | None:
        node = self.any_node()
        if node is None or node.hung or not node.fake.tasks:
            return None
        return (node, *self.random.choice(list(node.fake.tasks)))

    def work(self) -> None:
        if (task := self.some_task()) is not None:
            node, name, role = task
            node.outbox.extend(node.fake.advance(name, role, finish_early=self.random.random() < 0.2))

    def fail_task(self) -> None:
        if (task := self.some_task()) is not None:
            node, name, role = task
            node.outbox.extend(node.fake.fail(name, role))

    def hang(self) -> None:
        """The process stands still: its connection lives, nothing moves."""
        if (node := self.any_node()) is not None:
            node.hung = True

    def tick(self) -> None:
        if not self.severity:
            self.heartbeat()
        self.world.clock.advance(self.random.choice([0.05, 0.1, 0.5]))
        self.send_tick()

    def send_tick(self) -> None:
        before = len(self.world.drops)
        self.world.tick()
        self.send(Heartbeat("nobody"))  # collect what the tick said
        for drop in self.world.drops[before:]:
            self.bury(drop.worker)

    def heartbeat(self) -> None:
        for worker in {node.fake.info.worker for node in self.nodes.values() if not node.hung}:
            nodes = [n for n in self.nodes.values() if n.fake.info.worker == worker]
            if any(n.hung for n in nodes):
                continue
            loads = (
                InstanceLoad(n.fake.info.ref, Load(running=len(n.fake.tasks), free_pages=9, free_slots=1))
                for n in nodes
            )
            self.send(Heartbeat(worker, tuple(loads)))

    def cancel(self) -> None:
        if self.owner:
            self.send(Cancel(self.random.choice(list(self.owner)), "toy cancel"))

    def bury(self, worker: str) -> list[Node]:
        dead = [n for n in self.nodes.values() if n.fake.info.worker == worker]
        for node in dead:
            node.fake.die()
            del self.nodes[node.fake.info.ref]
        return dead

    def kill_worker(self) -> None:
        """Sometimes the loss is noticed, sometimes the worker is back first."""
        node = self.any_node()
        if node is None:
            return
        dead = self.bury(node.fake.info.worker)
        if self.random.random() < 0.7:
            self.send(WorkerLost(node.fake.info.worker, "toy kill"))
        if self.random.random() < 0.8:
            self.join([self.again(n) for n in dead])

    def reset_instance(self) -> None:
        node = self.any_node()
        if node is None or node.hung:
            return
        successor = self.again(node)
        node.fake.die()
        del self.nodes[node.fake.info.ref]
        self.nodes[successor.fake.info.ref] = successor
        self.send(InstanceReset(node.fake.info.worker, node.fake.info.ref, successor.fake.info, "toy reset"))

    def lose_gateway(self) -> None:
        gateway = self.random.choice(list(self.gateways))
        self.forsaken |= {name for name, (owner, _) in self.owner.items() if owner == gateway}
        if gateway in self.connected and self.random.random() < 0.8:
            self.connected.discard(gateway)
            self.send(GatewayLost(gateway))
        else:
            self.connected.add(gateway)
            self.gateways[gateway] += 1
            self.send(GatewayJoined(gateway))

    # ---- the end

    def clear_up(self) -> None:
        """No more faults. Everything that is not stuck ends by itself; the rest by its deadline; hung processes by their silence."""
        for _ in range(450):
            for node in list(self.nodes.values()):
                if not node.hung:
                    while node.inbox:
                        node.outbox.extend(node.fake.handle(node.inbox.popleft()))
                    node.outbox.extend(node.fake.finish_everything())
                while node.outbox:
                    self.send(Reported(node.fake.info.ref, node.outbox.popleft()))
            self.heartbeat()
            self.world.clock.advance(0.1)
            self.send_tick()
            if self.world.scheduler.idle and not any(
                n.fake.tasks or n.inbox or n.outbox for n in self.nodes.values() if not n.hung
            ):
                return

    def check(self) -> None:
        self.world.assert_nothing_is_held()
        for node in self.nodes.values():
            assert node.hung or not node.fake.tasks, "told to start, never told to stop"
        notices = [n for told in self.world.notices.values() for n in told if isinstance(n, Failed | Completed)]
        counts: dict[str, int] = {}
        for notice in notices:
            counts[notice.request] = counts.get(notice.request, 0) + 1
        for name in self.owner:
            told = counts.get(name, 0)
            assert told == 1 or (told == 0 and name in self.forsaken), f"{name}: {told} terminal notices"
        counters = self.world.scheduler.counters
        assert counters["admitted"] == counters["completed"] + counters.failed


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), severity=st.sampled_from([0.1, 0.5, 1.0]))
def test_every_request_ends_once_and_nothing_is_held_after_a_storm(seed: int, severity: float) -> None:
    storm = Storm(seed, severity)
    for _ in range(250):
        storm.step()
    storm.clear_up()
    storm.check()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_when_nothing_goes_wrong_every_admitted_request_completes_or_never_fitted(seed: int) -> None:
    storm = Storm(seed, severity=0.0)
    for _ in range(250):
        storm.step()
    storm.clear_up()
    storm.check()
    failures = [n for told in storm.world.notices.values() for n in told if isinstance(n, Failed)]
    assert {n.status for n in failures} <= {Status.INVALID_ARGUMENT, Status.RESOURCE_EXHAUSTED}
    counters = storm.world.scheduler.counters
    assert counters["completed"] == counters["admitted"] - counters["failed_invalid_argument"] > 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_events_cause_the_same_commands(seed: int) -> None:
    first, second = Storm(seed, 0.5), Storm(seed, 0.5)
    for _ in range(150):
        first.step()
        second.step()
    assert first.world.commands == second.world.commands
    assert first.world.notices == second.world.notices

"""A seeded storm over simulated instances, gateways and the scheduler itself.

Every connection is a pair of queues that keep their order; between connections any interleaving happens, because every delivery is a random
choice. A connection that breaks loses what is in its queues. Instances and gateways are honest: they do what their protocols say, and go on with
what they hold while nobody listens.
"""

from __future__ import annotations

from tests.runtime.scheduler.storm_peers import Gateway
from tests.runtime.scheduler.storm_world import CONFIG, StormWorld
from tests.runtime.scheduler.world import roles_of
from triptych.runtime.core.control import (
    Cancel,
    DrainRequested,
    GatewayLeft,
    GatewayLost,
    InstanceReset,
    Reported,
    WorkerLeft,
    WorkerLost,
)
from triptych.runtime.core.errors import Status


class Storm(StormWorld):
    """A world in which things go wrong."""

    # ---- faults

    def cancel(self) -> None:
        gateway = self.any_gateway()
        if gateway.open:
            name = self.random.choice(list(gateway.open))
            del gateway.open[name]
            self.owed.discard(name)
            if gateway.connected:
                gateway.outbox.append(Cancel(name, "client went away"))

    def lose_tokens(self) -> None:
        """The gateway notices a gap and resumes unasked."""
        gateway = self.any_gateway()
        if gateway.open and gateway.connected:
            known = self.random.choice(list(gateway.open.values()))
            if known.attempt < CONFIG.max_attempts:
                self.resume(gateway, known, known.attempt + 1)

    def fail_task(self) -> None:
        if (task := self.some_task()) is not None:
            node, key = task
            status = self.random.choice([Status.INTERNAL, Status.UNAVAILABLE, Status.UNAVAILABLE, Status.DATA_LOSS])
            node.say(node.fake.fail(key, status))

    def lose_media(self) -> None:
        """Embeddings are evicted, and pulls of them fail."""
        node = self.any_node()
        if not node.hung:
            node.say(node.fake.forget_media())

    def hang(self) -> None:
        """The process stands still: its connection lives, nothing moves."""
        self.any_node().hung = True

    def unhang(self) -> None:
        for node in self.nodes.values():
            node.hung = False

    def kill_worker(self) -> None:
        """Sometimes the loss is noticed, sometimes the worker is back first."""
        worker = self.any_node().fake.info.worker
        for ref in list(self.workers[worker]):
            self.again(self.nodes[ref]).cut()
        if self.random.random() < 0.7:
            end = WorkerLeft if self.random.random() < 0.3 else WorkerLost
            self.send(end(worker, "toy kill"))

    def break_worker(self) -> None:
        """The stream of a living worker breaks; the scheduler may hear of it only with the next one."""
        worker = self.any_node().fake.info.worker
        self.cut_worker(worker)
        if self.random.random() < 0.8:
            self.send(WorkerLost(worker, "toy break"))

    def rejoin_worker(self) -> None:
        node = self.any_node()
        if not node.connected and not node.hung:
            self.join(node.fake.info.worker)

    def reset_instance(self) -> None:
        node = self.any_node()
        if not node.hung and node.connected:
            old, successor = node.fake.info, self.again(node)
            self.send(InstanceReset(old.worker, old.ref, successor.fake.info, "toy reset"))

    def break_gateway(self) -> None:
        gateway = self.any_gateway()
        if gateway.connected:
            gateway.cut()
            self.send(GatewayLost(gateway.name))

    def rejoin_gateway(self) -> None:
        gateway = self.any_gateway()
        if not gateway.connected or self.random.random() < 0.1:
            self.connect_gateway(gateway)

    def kill_gateway(self) -> None:
        """Its clients are gone; another gateway takes its place."""
        gateway = self.any_gateway()
        self.owed -= set(gateway.open)
        del self.gateways[gateway.name]
        if gateway.connected:
            self.send((GatewayLeft if self.random.random() < 0.5 else GatewayLost)(gateway.name))
        self.connect_gateway(Gateway(gateway.name[0] + str(int(gateway.name[1:]) + 1)))

    def restart_scheduler(self) -> None:
        for node in self.nodes.values():
            node.cut()
        for gateway in self.gateways.values():
            gateway.cut()
        self.boot()

    def switch_roles(self) -> None:
        kinds = ["p", "d", "pd", *(["e", "ep", "epd"] if self.media else [])]
        roles = roles_of(self.random.choice(kinds))
        self.send(DrainRequested("t", self.any_node().fake.info.ref.id, roles, force=self.random.random() < 0.3))

    def step(self) -> None:
        """One thing happens."""
        calm = (
            (self.submit, 10.0),
            (self.deliver_command, 30.0),
            (self.deliver_report, 30.0),
            (self.hear_gateway, 30.0),
            (self.tell_gateway, 20.0),
            (self.work, 30.0),
            (self.tick, 5.0),
            (self.heartbeat, 10.0),
        )
        faults = (
            (self.cancel, 3.0),
            (self.lose_tokens, 1.0),
            (self.fail_task, 2.0),
            *([(self.lose_media, 1.0)] if self.media else []),
            (self.hang, 0.3),
            (self.unhang, 0.5),
            (self.kill_worker, 1.0),
            (self.break_worker, 2.0),
            (self.rejoin_worker, 30.0),
            (self.reset_instance, 1.0),
            (self.break_gateway, 1.0),
            (self.rejoin_gateway, 15.0),
            (self.kill_gateway, 0.5),
            (self.restart_scheduler, 0.5),
            (self.switch_roles, 0.5),
        )
        happenings = [*calm, *((happening, weight * self.severity) for happening, weight in faults)]
        chosen = self.random.choices([h for h, _ in happenings], [weight for _, weight in happenings])[0]
        chosen()

    # ---- the end

    def clear_up(self) -> None:
        """No more faults: whoever is cut off comes back, and everything ends by itself."""
        self.unhang()
        for worker, refs in self.workers.items():
            if not all(self.nodes[ref].connected for ref in refs):
                self.join(worker)
        for gateway in self.gateways.values():
            if not gateway.connected:
                self.connect_gateway(gateway)
        for _ in range(1200):
            for node in list(self.nodes.values()):
                while node.inbox:
                    self.obey(node)
                node.say(list(node.fake.finish_everything()))
                while node.outbox:
                    self.send(Reported(node.fake.info.ref, node.outbox.popleft()))
            for gateway in self.gateways.values():
                while gateway.outbox:
                    self.send(gateway.outbox.popleft())
                while gateway.inbox:
                    self.notice(gateway, gateway.inbox.popleft())
            self.heartbeat()
            self.world.clock.advance(0.1)
            self.world_tick()
            if self.quiet:
                return

    @property
    def quiet(self) -> bool:
        nodes, gateways = self.nodes.values(), self.gateways.values()
        return (
            self.world.scheduler.idle
            and self.world.scheduler.resources().unclaimed == 0
            and not any(n.fake.tasks or n.inbox or n.outbox for n in nodes)
            and not any(g.open or g.inbox or g.outbox for g in gateways)
        )

    def check(self) -> None:
        self.world.assert_nothing_is_held()
        for node in self.nodes.values():
            assert not node.fake.tasks, "told to start, never told to stop"
        for gateway in self.gateways.values():
            assert not gateway.open, "an open request that nobody ended"
        for name in self.owed:
            assert name in self.ends, f"{name}: its gateway heard no end"
        counters = self.world.scheduler.counters
        assert counters["admitted"] + counters["declared"] == counters["completed"] + counters.failed

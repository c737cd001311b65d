"""Links between hosts, and the connections that live on them: what TCP and gRPC give, and nothing more.

A connection is reliable and ordered while it lives. It dies when an end closes it, when a process dies, when a keepalive goes unanswered (because
the link is cut or the other process stands still), or when somebody in between resets it. What was on its way then is lost, or arrives
before the end does, as luck will have it: nobody may count on either. Across a cut messages wait (TCP repeats them) and arrive if the cut
is shorter than the patience of both ends; an end that gave up meanwhile is heard of by the other when the link is whole again, unless that one gives up by itself: both ends send keepalives.

Bulk is what bandwidth counts for: pieces of one direction of one link follow one another, and other messages pass them. A link that becomes slower or
faster does so for what it has not carried yet, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triptych.runtime.simulation.events import Action, EventLoop, Process

Accept = Callable[["End", str, str], None]
"""Called with the accepting end of a new connection, the name of who dialled, and the service that was asked for."""


@dataclass(frozen=True)
class NetworkConfig:
    """All links alike, times in seconds; one link can be slowed down (`Network.slow`).

    Attributes:
        latency: one way.
        jitter: at most this fraction of the latency is added, at random.
        bandwidth: bytes a second of one direction of one link.
        keepalive: silence after which an end gives up; at most twice this passes.
        connect_timeout: how long dialling may take.
    """

    latency: float = 0.0005
    jitter: float = 0.2
    bandwidth: float = 10e9
    keepalive: float = 5.0
    connect_timeout: float = 5.0


class Link:
    """Two hosts and what lies between them; the same link for both directions."""

    __slots__ = ("busy", "cargo", "cut", "cuts", "dialled", "slowness", "stalled")

    def __init__(self) -> None:
        self.cut = False
        self.cuts = 0  # tells one cut from the next
        self.slowness = 1.0
        self.busy: dict[str, float] = {}  # sender -> until when its direction carries bytes
        self.cargo: dict[Bulk, None] = {}  # what it carries or is to carry, in both directions
        self.dialled: dict[End, None] = {}  # ends that dialled, in order of dialling, while they are open
        self.stalled: dict[End, None] = {}  # ends whose words the cut holds up


class Bulk:
    """A message that takes its time. `carried`: when the link will have carried it, at the link's present speed."""

    __slots__ = ("carried", "end", "message")

    def __init__(self, end: End, message: Any, carried: float):
        self.end = end
        self.message = message
        self.carried = carried


class End:
    """One end of a connection. `on_message` and `on_closed` are called on its process; neither after `close` or after `on_closed`."""

    __slots__ = (
        "_arrives",
        "_doomed",
        "_held",
        "_link",
        "_network",
        "on_closed",
        "on_message",
        "open",
        "peer",
        "process",
    )

    def __init__(self, network: Network, process: Process, link: Link | None):
        self._network = network
        self._link = link
        self._arrives = 0.0
        self._held: list[tuple[Action, Any]] = []
        self._doomed = False
        self.process = process
        self.peer: End = self
        self.open = True
        self.on_message: Action = _ignore
        self.on_closed: Callable[[str], None] = _ignore

    def send(self, message: Any) -> None:
        """Deliver `message` to the other end, after everything sent before. Dropped if this end is closed."""
        if self.open:
            self.transmit(self._deliver, message)

    def send_bulk(self, message: Any, size: float) -> None:
        """Deliver `message` of `size` bytes when the link had the time to carry them: behind other bulk, but messages sent later overtake it."""
        if not self.open:
            return
        loop, link = self._network.loop, self._link
        if link is None:
            loop.at(loop.now(), None, self._arrive, (self._deliver, message))
            return
        start = max(loop.now(), link.busy.get(self.process.name, 0.0))
        carried = start + size * link.slowness / self._network.config.bandwidth
        link.busy[self.process.name] = carried
        bulk = Bulk(self, message, carried)
        link.cargo[bulk] = None
        loop.at(carried, None, self._network.carry, (link, bulk))

    def close(self, reason: str) -> None:
        """End the connection in good order: what was sent before arrives first."""
        if self.open:
            self.shut()
            self.transmit(self._end_peer, reason)

    def abort(self, reason: str) -> None:
        """End the connection at once: what is on its way may be lost."""
        if self.open:
            self._doomed = self._network.random.random() < 0.5
            self.close(reason)

    def fail(self, reason: str) -> None:
        """The network finds the connection dead, and tells this end's process."""
        if self.open:
            self.abort(reason)
            self.process.happen(self.on_closed, reason)

    # ---- for Network

    def shut(self) -> None:
        self.open = False
        if self._link is not None:
            self._link.dialled.pop(self, None)
        self._network.forget(self)

    def transmit(self, action: Action, argument: Any) -> None:
        """Do `action(argument)` at the other side once it can have arrived there."""
        link, loop = self._link, self._network.loop
        when = loop.now()
        if link is not None:  # else inside one process: no wire
            when += self._network.delay(link)
        self._arrives = max(self._arrives, when)
        loop.at(self._arrives, None, self._arrive, (action, argument))

    def land(self, message: Any) -> None:
        """The link has carried a bulk message; its last byte is on its way."""
        delay = 0.0 if self._link is None else self._network.delay(self._link)
        self._network.loop.after(delay, None, self._arrive, (self._deliver, message))

    def flush(self) -> None:
        """The link is whole again: what was held up arrives."""
        held, self._held = self._held, []
        for action, argument in held:
            action(argument)

    def _arrive(self, entry: tuple[Action, Any]) -> None:
        if self._link is not None and self._link.cut:
            self._link.stalled[self] = None
            self._held.append(entry)
        else:
            entry[0](entry[1])

    def _deliver(self, message: Any) -> None:
        if not self._doomed:
            self.peer.process.happen(self.peer._receive, message)

    def _receive(self, message: Any) -> None:
        if self.open:
            self.on_message(message)

    def _end_peer(self, reason: str) -> None:
        self.peer.process.happen(self.peer._ended, reason)

    def _ended(self, reason: str) -> None:
        if self.open:
            self.shut()
            self.on_closed(reason)


class Network:
    """Owner of links, of connections, and of the names under which processes can be reached."""

    def __init__(self, loop: EventLoop, config: NetworkConfig, source: random.Random):
        self.loop = loop
        self.config = config
        self.random = source
        self._links: dict[tuple[str, str], Link] = {}
        self._listening: dict[str, tuple[Process, Accept]] = {}
        self._ends: dict[Process, dict[End, None]] = {}
        self._ghosts: dict[str, list[End]] = {}  # by host that vanished: ends that do not know it yet

    @property
    def connections(self) -> int:
        """Open ends of living processes."""
        return sum(len(ends) for ends in self._ends.values())

    # ---- connections

    def listen(self, process: Process, accept: Accept) -> None:
        """Be reachable under the process's name. Whoever still counts on an earlier process of that name learns that it is gone."""
        self._listening[process.name] = (process, accept)
        for end in self._ghosts.pop(process.name, ()):
            end.fail(f"{process.name} knows nothing of this connection")

    def dial(
        self, process: Process, server: str, service: str, on_message: Action, on_closed: Callable[[str], None]
    ) -> End:
        """Connect to whoever listens as `server`. The end can be used at once; if nobody answers, `on_closed` will say so."""
        link = None if server == process.name else self.link(process.name, server)
        near, far = End(self, process, link), End(self, process, link)
        near.on_message, near.on_closed = on_message, on_closed
        near.peer, far.peer = far, near
        self._ends.setdefault(process, {})[near] = None
        if link is not None:
            link.dialled[near] = None
            if link.cut:
                self.loop.after(self.config.connect_timeout, None, self._give_up, (near, link, link.cuts))
        near.transmit(self._admit, (server, service, far))
        return near

    def _admit(self, knock: tuple[str, str, End]) -> None:
        server, service, far = knock
        process, accept = self._listening.get(server, (None, None))
        dialler = far.process
        if process is None or accept is None or not process.alive:
            far.transmit(far._end_peer, f"nobody listens at {server}")
            return
        far.process = process
        self._ends.setdefault(process, {})[far] = None
        if process.paused:  # the kernel takes the connection, the process does not see it yet
            self.loop.after(self.config.keepalive, None, self._miss, (far.peer, process))
        process.happen(_accept, (accept, far, dialler.name, service))

    def forget(self, end: End) -> None:
        """`end` was shut."""
        ends = self._ends.get(end.process)
        if ends is not None:
            ends.pop(end, None)

    # ---- what befalls links and processes

    def link(self, one: str, other: str) -> Link:
        """The link between two hosts, whole and at normal speed unless something was done to it."""
        key = (one, other) if one < other else (other, one)
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = Link()
        return link

    def delay(self, link: Link) -> float:
        """Seconds that the next message needs one way."""
        config = self.config
        return config.latency * link.slowness * (1.0 + config.jitter * self.random.random())

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two hosts any more; ends give up after their keepalive."""
        link = self.link(one, other)
        if not link.cut:
            link.cut = True
            link.cuts += 1
            for near in link.dialled:
                for end in (near, near.peer):
                    self.loop.after(self._patience(), None, self._give_up, (end, link, link.cuts))

    def heal(self, one: str, other: str) -> None:
        """Whatever still wants to pass, passes."""
        link = self.link(one, other)
        link.cut = False
        stalled, link.stalled = link.stalled, {}
        for end in stalled:
            end.flush()

    def slow(self, one: str, other: str, factor: float) -> None:
        """Latency and transfer times between the two hosts are `factor` times the normal from now on, also of bulk under way."""
        link, now = self.link(one, other), self.loop.now()
        change, link.slowness = factor / link.slowness, factor
        if change == 1.0:
            return
        link.busy = {sender: now + max(0.0, until - now) * change for sender, until in link.busy.items()}
        for bulk in link.cargo:
            bulk.carried = now + (bulk.carried - now) * change
            self.loop.at(bulk.carried, None, self.carry, (link, bulk))

    def carry(self, load: tuple[Link, Bulk]) -> None:
        """Bulk is there, unless the link became slower, or had become faster and it has been there before."""
        link, bulk = load
        if bulk in link.cargo and bulk.carried <= self.loop.now():
            del link.cargo[bulk]
            bulk.end.land(bulk.message)

    def reset(self, one: str, other: str) -> None:
        """Somebody in between resets every connection of the two hosts; new ones can be made at once."""
        for end in list(self.link(one, other).dialled):
            (end if self.random.random() < 0.5 else end.peer).fail("connection reset")

    def freeze(self, process: Process) -> None:
        """`process` was paused: the other ends of its connections give up if it stands still for longer than their keepalive."""
        for end in self._ends.get(process, ()):
            if end.peer.process is not process:
                self.loop.after(self._patience(), None, self._miss, (end.peer, process))

    def bury(self, process: Process) -> None:
        """`process` was killed: its kernel closes its connections."""
        for end in list(self._ends.pop(process, ())):
            end.abort(f"{process.name} died")

    def vanish(self, process: Process) -> None:
        """`process` is gone together with its host: nobody closes anything; keepalives and the host's next life tell."""
        for end in list(self._ends.pop(process, ())):
            end.shut()
            end._doomed = True
            self._ghosts.setdefault(process.name, []).append(end.peer)
            self.loop.after(self._patience(), None, self._miss, (end.peer, process))

    def _patience(self) -> float:
        return self.config.keepalive * (1.0 + self.random.random())

    def _give_up(self, waiting: tuple[End, Link, int]) -> None:
        end, link, cuts = waiting
        if link.cut and link.cuts == cuts:
            end.fail("keepalive was not answered: the link is cut")

    def _miss(self, waiting: tuple[End, Process]) -> None:
        end, process = waiting
        if process.paused or not process.alive:
            end.fail(f"keepalive was not answered by {process.name}")


def _accept(call: tuple[Accept, End, str, str]) -> None:
    accept, end, dialler, service = call
    if end.open:
        accept(end, dialler, service)


def _ignore(_: Any) -> None:
    """What nobody waits for."""

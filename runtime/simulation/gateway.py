"""A simulated gateway process, and the clients that it serves.

What `runtime/gateway` does, without text: one stream to the scheduler, a subscription to every worker of the directory, one Conversation for each open
request. A client is outside of every process: it keeps what it was shown and how its call ended, whatever becomes of the gateway.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from triptych.runtime.core.control import Cancel, Directory, GatewayNotice, Interrupted, MediaNeeded
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceInfo
from triptych.runtime.core.request import Finish, Request, TokenOut
from triptych.runtime.simulation.conversation import Conversation, ConversationConfig
from triptych.runtime.simulation.events import Process
from triptych.runtime.simulation.media import SimCourier
from triptych.runtime.simulation.network import End, Network
from triptych.runtime.simulation.worker import TOKENS, Leave, PromptDone, TokenBatch

SERVICE = "gateway"  # of the scheduler: what a gateway dials


@dataclass(frozen=True)
class GatewayConfig:
    """Times in seconds, named and meant as in the live gateway's config; `still` is how late a timer must be to show that the process stood still."""

    conversation: ConversationConfig = field(default_factory=ConversationConfig)
    max_model_len: int = 1 << 20
    backoff_initial: float = 0.05
    backoff_max: float = 5.0
    link_linger: float = 30.0
    still: float = 1.0


@dataclass(eq=False, slots=True)
class Client:
    """One call of Generate, from outside.

    Attributes:
        request: as it was made, at attempt 1.
        shown: tokens of each sample, in the order in which they came.
        finishes: how each sample ended, once it has.
        status: how the call ended; None while it is open.
        attempts: the attempt under which it ended.
        left: it went away before the end.
        orphaned: its gateway died, or was not there.
    """

    request: Request
    gateway: str
    began: float
    shown: list[list[int]]
    finishes: list[Finish | None]
    faults: list[str] = field(default_factory=list)
    first_token: float | None = None
    status: Status | None = None
    reason: str = ""
    ended: float = 0.0
    attempts: int = 1
    left: bool = False
    orphaned: bool = False

    def show(self, token: TokenOut, now: float) -> None:
        """The client reads one token: each position must come once and in order."""
        line = self.shown[token.sample]
        if self.first_token is None:
            self.first_token = now
        expected = len(self.request.prompt) + len(line)
        if token.position != expected:
            kind = "duplicated" if token.position < expected else "missing"
            self.faults.append(f"{kind}: sample {token.sample} got position {token.position}, expected {expected}")
        if self.finishes[token.sample] is not None:
            self.faults.append(f"duplicated: sample {token.sample} got a token after its end")
        line.append(token.token)
        self.finishes[token.sample] = token.finish

    def lose_gateway(self, now: float) -> None:
        """Nobody is there (any more) at the other end of the call."""
        self.orphaned = self.orphaned or self.status is None
        self.end(Status.UNAVAILABLE, "the gateway is not there", now)

    def end(self, status: Status, reason: str, now: float) -> None:
        """The call's one end."""
        if self.status is None:
            self.status, self.reason, self.ended = status, reason, now


def client_of(request: Request, now: float) -> Client:
    """A client that is about to make `request`."""
    n = request.sampling.n
    return Client(request, request.gateway, now, [[] for _ in range(n)], [None] * n)


class _Link:
    """A subscription to one worker."""

    __slots__ = ("backoff", "end", "leaving", "life")

    def __init__(self, backoff: float):
        self.backoff = backoff
        self.end: End | None = None
        self.leaving = False
        self.life = 0  # tells a timer of a departure that was taken back


class SimGateway(Process):
    """One life of a gateway. `start` once, then `submit`."""

    def __init__(self, name: str, network: Network, *, scheduler: str, config: GatewayConfig, source: random.Random):
        super().__init__(name)
        self._network = network
        self._loop = network.loop
        self._scheduler = scheduler
        self._config = config
        self._random = source
        self._control: End | None = None
        self._connected = False
        self._backoff = config.backoff_initial
        self._links: dict[str, _Link] = {}
        self._open: dict[str, tuple[Client, Conversation]] = {}
        self._wakes: dict[str, float] = {}
        self.courier = SimCourier(self, network, config.backoff_initial)

    @property
    def open(self) -> int:
        """Calls that have not ended."""
        return len(self._open)

    @property
    def connected(self) -> bool:
        """Whether the scheduler has answered the greeting."""
        return self._connected

    def start(self) -> None:
        self._dial(None)

    def leave(self, reason: str) -> None:
        """Say good-bye and end, as at SIGTERM when no grace is left for what is open."""
        if self._control is not None:
            self._control.send(Leave(reason))
            self._control.close(reason)
        self.kill()
        self._network.bury(self)

    # ---- clients

    def submit(self, client: Client) -> None:
        """A call arrives."""
        away = None if self._connected else self._loop.now()
        talk = Conversation(client.request, self._config.max_model_len, self._config.conversation, away)
        self._open[client.request.id] = (client, talk)
        self._changed(client, talk)

    def disconnect(self, client: Client) -> None:
        """The client goes away."""
        entry = self._open.get(client.request.id)
        if entry is not None:
            client.left = True
            client.end(Status.CANCELLED, "the client went away", self._loop.now())
            self._leave(client, entry[1], "the client went away")

    def _changed(self, client: Client, talk: Conversation) -> None:
        """`talk` was fed: tell the scheduler, end the call, move the timer."""
        if self._connected and self._control is not None:
            for told in talk.tell():
                self._control.send(told)
        if talk.ended:
            assert talk.status is not None
            client.end(talk.status, talk.reason, self._loop.now())
            self._leave(client, talk, talk.reason)
            return
        wakes = talk.wakes_at()
        request = client.request.id
        if wakes is not None and wakes < self._wakes.get(request, float("inf")):
            self._wakes[request] = wakes
            self._loop.at(wakes, self, self._wake, (request, wakes))

    def _wake(self, timer: tuple[str, float]) -> None:
        request, due = timer
        entry = self._open.get(request)
        if entry is None or self._wakes.get(request) != due:
            return
        del self._wakes[request]
        now = self._loop.now()
        if now - due > self._config.still:
            entry[1].stood_still(now)
        entry[1].tick(now)
        self._changed(*entry)

    def _leave(self, client: Client, talk: Conversation, reason: str) -> None:
        client.attempts = talk.attempt
        del self._open[client.request.id]
        self._wakes.pop(client.request.id, None)
        self.courier.forget(client.request.id)
        if talk.generation.must_cancel and self._connected and self._control is not None:
            self._control.send(Cancel(client.request.id, reason))

    # ---- the scheduler

    def _dial(self, _: None) -> None:
        self._control = self._network.dial(self, self._scheduler, SERVICE, self._hear, self._lost)

    def _lost(self, reason: str) -> None:
        was_connected, self._connected, self._control = self._connected, False, None
        if was_connected:
            for client, talk in list(self._open.values()):
                talk.scheduler_lost(self._loop.now())
                self._changed(client, talk)
        self._loop.after(self._backoff * self._random.uniform(0.5, 1.0), self, self._dial)
        self._backoff = min(self._backoff * 2, self._config.backoff_max)

    def _hear(self, notice: GatewayNotice) -> None:
        if not self._connected:
            self._connected, self._backoff = True, self._config.backoff_initial
            for client, talk in list(self._open.values()):
                assert self._control is not None
                for told in talk.introduce():
                    self._control.send(told)
                self._changed(client, talk)
        if isinstance(notice, Directory):
            self.courier.follow(notice)
            self._follow(notice.instances)
            return
        entry = self._open.get(notice.request)
        if entry is not None:
            if isinstance(notice, MediaNeeded):
                self._bring(notice, *entry)
            entry[1].notice(notice, self._loop.now())
            self._changed(*entry)
        elif isinstance(notice, Interrupted) and self._control is not None:
            self._control.send(Cancel(notice.request, "the request is not open at its gateway any more"))

    def _bring(self, needed: MediaNeeded, client: Client, talk: Conversation) -> None:
        def alive() -> bool:
            entry = self._open.get(needed.request)
            return entry is not None and entry[1] is talk and talk.attempt == needed.attempt

        self.courier.bring(needed, client.request.media, alive)

    # ---- workers

    def _follow(self, instances: Sequence[InstanceInfo]) -> None:
        addresses = dict.fromkeys(info.address for info in instances)
        for address in addresses:
            link = self._links.get(address)
            if link is None:
                link = self._links[address] = _Link(self._config.backoff_initial)
                self._subscribe(address)
            elif link.leaving and link.end is None:  # it gave up while it was leaving
                self._subscribe(address)
            link.leaving = False
            link.life += 1
        for address in [a for a, link in self._links.items() if a not in addresses and not link.leaving]:
            link = self._links[address]
            link.leaving = True
            self._loop.after(self._config.link_linger, self, self._drop, (address, link.life))

    def _drop(self, departure: tuple[str, int]) -> None:
        address, life = departure
        link = self._links.get(address)
        if link is not None and link.leaving and link.life == life:
            del self._links[address]
            if link.end is not None:
                link.end.close("the worker is gone from the directory")

    def _subscribe(self, address: str) -> None:
        link = self._links.get(address)
        if link is not None and link.end is None:
            link.end = self._network.dial(
                self,
                address,
                TOKENS,
                lambda batch: self._read(link, batch),
                lambda reason: self._unsubscribed(address, link),
            )

    def _unsubscribed(self, address: str, link: _Link) -> None:
        link.end = None
        if self._links.get(address) is link and not link.leaving:
            self._loop.after(link.backoff * self._random.uniform(0.5, 1.0), self, self._subscribe, address)
            link.backoff = min(link.backoff * 2, self._config.backoff_max)

    def _read(self, link: _Link, batch: TokenBatch) -> None:
        link.backoff = self._config.backoff_initial
        now = self._loop.now()
        for done in batch.prompts:
            self._prompt(done)
        touched: dict[str, tuple[Client, Conversation]] = {}
        for token in batch.tokens:
            entry = self._open.get(token.request)
            if entry is not None:
                client, talk = entry
                for released in talk.token(token, now):
                    client.show(released, now)
                touched[token.request] = entry
        for client, talk in touched.values():
            self._changed(client, talk)

    def _prompt(self, done: PromptDone) -> None:
        entry = self._open.get(done.request)
        if entry is not None:
            entry[1].prompt(done.attempt)
            self._changed(*entry)

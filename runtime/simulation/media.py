"""How pixels get from a simulated gateway to the encode instances that lack them, as `runtime/gateway/media/bringing.py` and
`runtime/worker/media_door.py` do it.

The receiver is asked first, and what it does not lack (any more) is not sent. A push is tried again while one of the requests
that need it is still at the attempt that asked; one that would be refused for ever is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from triptych.runtime.core.control import Directory, MediaNeeded
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.media import MediaItem
from triptych.runtime.simulation.events import Process
from triptych.runtime.simulation.network import End, Network

SERVICE = "media"  # of a worker: what a gateway dials


@dataclass(frozen=True, slots=True)
class Bring:
    """First message: whether this incarnation lacks the pixels of an item."""

    owner: InstanceRef
    hash: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the receiver: send them (`wanted`), they are there or not needed, or this incarnation is no more (`stale`)."""

    wanted: bool
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Brought:
    """The pixels; what they show is their hash."""

    hash: str


@dataclass(slots=True, eq=False)
class _Push:
    """One item on its way to one incarnation. `late`: a request asked after the pixels were sent."""

    address: str
    patches: int
    claims: dict[str, Callable[[], bool]] = field(default_factory=dict)
    end: End | None = None
    sent: bool = False
    late: bool = False

    @property
    def needed(self) -> bool:
        return any(alive() for alive in self.claims.values())


class SimCourier:
    """All pushes of one gateway, which is `process`. `retry`: seconds between two tries."""

    def __init__(self, process: Process, network: Network, retry: float):
        self._process, self._network, self._retry = process, network, retry
        self._pushes: dict[tuple[InstanceRef, str], _Push] = {}

    def __len__(self) -> int:
        """Pushes that are not over."""
        return len(self._pushes)

    def bring(self, needed: MediaNeeded, media: tuple[MediaItem, ...], alive: Callable[[], bool]) -> None:
        """Bring these items of a request, as long as it is `alive`."""
        for index in needed.items:
            key = (needed.encode, media[index].hash)
            push = self._pushes.get(key)
            if push is None:
                push = self._pushes[key] = _Push(needed.address, media[index].patches)
                push.claims[needed.request] = alive
                self._try((key, push))
            push.claims[needed.request] = alive
            push.late = push.late or push.sent

    def follow(self, directory: Directory) -> None:
        """What goes to an incarnation that another one has replaced is given up."""
        now = {info.ref.id: info.ref for info in directory.instances}
        for key in list(self._pushes):
            if now.get(key[0].id, key[0]) != key[0]:
                self._over(key)

    def forget(self, request: str) -> None:
        """The request has ended."""
        for key, push in list(self._pushes.items()):
            if push.claims.pop(request, None) is not None and not push.claims:
                self._over(key)

    def _over(self, key: tuple[InstanceRef, str]) -> None:
        push = self._pushes.pop(key)
        if push.end is not None:
            push.end.abort("nobody needs it any more")

    def _try(self, entry: tuple[tuple[InstanceRef, str], _Push]) -> None:
        key, push = entry
        if self._pushes.get(key) is not push:
            return
        if not push.needed:
            del self._pushes[key]
            return
        push.sent = push.late = False
        end = push.end = self._network.dial(
            self._process,
            push.address,
            SERVICE,
            lambda answer: self._hear(key, push, end, answer),
            lambda _: self._broken(key, push),
        )
        end.send(Bring(*key))

    def _hear(self, key: tuple[InstanceRef, str], push: _Push, end: End, answer: Answer) -> None:
        if self._pushes.get(key) is not push or push.end is not end:
            return
        if answer.wanted and not push.sent:
            push.sent = True
            end.send_bulk(Brought(key[1]), float(push.patches))
            return
        end.close("answered")
        push.end = None
        if push.late and not answer.stale:
            self._try((key, push))
        else:
            del self._pushes[key]

    def _broken(self, key: tuple[InstanceRef, str], push: _Push) -> None:
        if self._pushes.get(key) is push:
            push.end = None
            self._network.loop.after(self._retry, self._process, self._try, (key, push))

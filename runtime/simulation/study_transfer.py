"""How KV moves between two instances of a study.

An instance that pulls says so to the source (PullOpened). The source sends pages as soon as they are ready and its
outgoing link is free (Pages); the receiver hears of them when their first byte has arrived, and has them when its
incoming link, which serves whoever comes first, has let them through. The last message brings the final record. Setting
a pull up, hearing of its end and every other message between two instances takes `Wire.latency`.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.request import Continuation
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.instance.messages import Imported, LeaseExtended, StagedReleased, StartPull
from triptych.runtime.instance.plan import Export
from triptych.runtime.simulation.events import Action, EventLoop
from triptych.runtime.simulation.study_post import Post


@dataclass(frozen=True)
class Wire:
    """How KV leaves and enters an instance: bytes a second each way, seconds to set a pull up and to hear of its end,
    bytes of KV a page."""

    bandwidth: float
    latency: float
    page_bytes: int


@dataclass(frozen=True, slots=True)
class PullOpened:
    """To a source: party `puller` wants `pages` pages of `key`, at most at `bandwidth` bytes a second."""

    puller: int
    request: str
    key: int
    pages: int
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Pages:
    """To a puller: the first byte of `pages` pages of `key` arrives now; links carry them in `seconds`. `final` comes with
    the last ones."""

    request: str
    key: int
    pages: int
    seconds: float
    final: Continuation | None


@dataclass(slots=True)
class Staging:
    """KV that waits for its puller: pages that are ready, who pulls, what was sent, when the link began with the last."""

    ready: int = 0
    final: Continuation | None = None
    puller: PullOpened | None = None
    sent: int = 0
    last: float = 0.0


@dataclass(slots=True)
class Pull:
    """A pull under way; `moved` is when the last byte so far is there."""

    message: StartPull
    source: int
    began: float
    moved: float = 0.0
    pages: int = 0


class Transfers:
    """Both ends of the pulls of one instance: party `me`, whose events go to `door`."""

    __slots__ = ("_door", "_egress", "_ingress", "_loop", "_me", "_post", "_pulls", "_stagings", "_wire")

    def __init__(self, me: int, loop: EventLoop, post: Post, wire: Wire, door: Action):
        self._me, self._loop, self._post, self._wire, self._door = me, loop, post, wire, door
        self._stagings: dict[int, Staging] = {}
        self._pulls: dict[str, Pull] = {}
        self._egress = self._ingress = 0.0  # when the two links will be free

    # ---- the source

    def stage(self, key: int) -> None:
        self._stagings[key] = Staging()

    def unstage(self, key: int) -> None:
        self._stagings.pop(key, None)

    def complete(self, key: int, final: Continuation) -> None:
        """The final record of `key`."""
        staging = self._stagings[key]
        staging.final = final
        self._send(staging)

    def opened(self, message: PullOpened) -> None:
        """A puller has reached this instance: what is ready goes out, what comes later follows by itself."""
        staging = self._stagings.get(message.key)
        if staging is not None:  # else aborted meanwhile: the puller is told by the scheduler
            staging.puller = message
            self._send(staging)

    def exported(self, exports: tuple[Export, ...]) -> None:
        """The step that filled these pages is done."""
        for export in exports:
            staging = self._stagings.get(export.key)
            if staging is not None:
                staging.ready += len(export.pages)
                self._send(staging)

    def _send(self, staging: Staging) -> None:
        """Send what is ready, once the link is free; and the final record, if this was all."""
        puller, pages, now = staging.puller, staging.ready, self._loop.now()
        if puller is None:
            return
        final = staging.final if staging.sent + pages >= puller.pages else None
        if not pages and final is None:
            return
        seconds = pages * self._wire.page_bytes / min(self._wire.bandwidth, puller.bandwidth)
        if pages:
            staging.last = start = max(now, self._egress)
            self._egress = start + seconds
            staging.ready, staging.sent = 0, staging.sent + pages
        else:
            start = max(now, staging.last)
        message = Pages(puller.request, puller.key, pages, seconds, final)
        self._post.send(self._me, puller.puller, start + self._wire.latency, message)

    # ---- the puller

    def pull(self, message: StartPull, source: int) -> None:
        """Pull from party `source`."""
        now = self._loop.now()
        self._pulls[message.request] = Pull(message, source, now)
        opened = PullOpened(self._me, message.request, message.source_key, len(message.pages), self._wire.bandwidth)
        self._post.send(self._me, source, now + self._wire.latency, opened)

    def cancel(self, request: str) -> None:
        self._pulls.pop(request, None)

    def extend(self) -> None:
        """The leases of what is being pulled are extended."""
        when = self._loop.now() + self._wire.latency
        for pull in self._pulls.values():
            self._post.send(self._me, pull.source, when, LeaseExtended(pull.message.source_key))

    def arriving(self, message: Pages) -> None:
        """Pages of a pull come in."""
        pull, now = self._pulls.get(message.request), self._loop.now()
        if pull is None or pull.message.source_key != message.key:
            return
        if message.pages:
            self._ingress = pull.moved = max(now, self._ingress) + message.seconds
            pull.pages += message.pages
        if message.final is not None:
            self._loop.at(pull.moved, None, self._arrived, (pull, message.final))

    def _arrived(self, what: tuple[Pull, Continuation]) -> None:
        pull, final = what
        message, now = pull.message, self._loop.now()
        if self._pulls.get(message.request) is not pull:
            return
        del self._pulls[message.request]
        moved = pull.pages * self._wire.page_bytes
        times = StageTimes(transfer=now - pull.began, bytes_moved=moved, pages_pulled=pull.pages)
        self._door(Imported(message.request, final, times, message.attempt))
        self._post.send(self._me, pull.source, now + self._wire.latency, StagedReleased(message.source_key))

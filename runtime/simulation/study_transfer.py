"""How KV and embeddings move between two instances of a study.

An instance that pulls says so to the source (PullOpened). The source sends pages as soon as they are ready and its
outgoing link is free (Pages); the receiver hears of them when their first byte has arrived, and has them when its
incoming link, which serves whoever comes first, has let them through. The last message brings the final record. Setting
a pull up, hearing of its end and every other message between two instances takes `Wire.latency`. Embeddings share the
links with KV; a request may have several pulls of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Continuation
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.instance.messages import (
    CancelPull,
    Imported,
    ImportFailed,
    LeaseExtended,
    MediaImported,
    StagedReleased,
    StartPull,
)
from triptych.runtime.instance.plan import Export, Pool
from triptych.runtime.simulation.events import Action, EventLoop
from triptych.runtime.simulation.study_post import Post


@dataclass(frozen=True)
class Wire:
    """How pages leave and enter an instance: bytes a second each way, seconds to set a pull up and to hear of its end,
    bytes of a page of KV, and of one of embeddings."""

    bandwidth: float
    latency: float
    page_bytes: int
    media_page_bytes: int = 0

    def bytes_of(self, pool: Pool) -> int:
        """Of a page."""
        return self.media_page_bytes if pool is Pool.MEDIA else self.page_bytes


@dataclass(frozen=True, slots=True)
class PullOpened:
    """To a source: party `puller` wants `pages` pages of `key`, at most at `bandwidth` bytes a second."""

    puller: int
    request: str
    key: int
    pages: int
    bandwidth: float
    pool: Pool = Pool.KV


@dataclass(frozen=True, slots=True)
class Pages:
    """To a puller: the first byte of `pages` pages of `key` arrives now; links carry them in `seconds`. `last`: nothing
    follows; `final` comes with the last pages of KV."""

    request: str
    key: int
    pages: int
    seconds: float
    last: bool
    final: Continuation | None


@dataclass(frozen=True, slots=True)
class Gone:
    """To a puller of embeddings: `key` is not staged any more, and what it has not got will not come."""

    request: str
    key: int


@dataclass(slots=True)
class Staging:
    """What waits for its puller: pages that are ready, whether they are all there will be (`final`: and the final record
    of KV), who pulls, what was sent, when the link began with the last."""

    pool: Pool = Pool.KV
    ready: int = 0
    complete: bool = False
    final: Continuation | None = None
    puller: PullOpened | None = None
    sent: int = 0
    over: bool = False  # everything was sent
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
        self._pulls: dict[tuple[str, int], Pull] = {}  # by request and, of embeddings, the source's key
        self._egress = self._ingress = 0.0  # when the two links will be free

    # ---- the source

    def stage(self, key: int, pool: Pool = Pool.KV) -> None:
        self._stagings[key] = Staging(pool)

    def unstage(self, key: int) -> None:
        staging = self._stagings.pop(key, None)
        if staging is not None and staging.puller is not None and not staging.over:
            self._gone(staging.pool, staging.puller)

    def complete(self, key: int, final: Continuation | None) -> None:
        """Nothing will be added to `key`; the final record, if it is KV."""
        staging = self._stagings[key]
        staging.complete, staging.final = True, final
        self._send(staging)

    def opened(self, message: PullOpened) -> None:
        """A puller has reached this instance: what is ready goes out, what comes later follows by itself."""
        staging = self._stagings.get(message.key)
        if staging is not None:
            staging.puller = message
            self._send(staging)
        else:
            self._gone(message.pool, message)

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
        last = staging.complete and staging.sent + pages >= puller.pages
        if not pages and not last:
            return
        seconds = pages * self._wire.bytes_of(staging.pool) / min(self._wire.bandwidth, puller.bandwidth)
        if pages:
            staging.last = start = max(now, self._egress)
            self._egress = start + seconds
            staging.ready, staging.sent = 0, staging.sent + pages
        else:
            start = max(now, staging.last)
        staging.over = last
        message = Pages(puller.request, puller.key, pages, seconds, last, staging.final if last else None)
        self._post.send(self._me, puller.puller, start + self._wire.latency, message)

    def _gone(self, pool: Pool, puller: PullOpened) -> None:
        """What was KV was aborted: the puller is told so by the scheduler. Embeddings may also have waited too long."""
        if pool is Pool.MEDIA:
            when = self._loop.now() + self._wire.latency
            self._post.send(self._me, puller.puller, when, Gone(puller.request, puller.key))

    # ---- the puller

    def pull(self, message: StartPull, source: int) -> None:
        """Pull from party `source`."""
        now = self._loop.now()
        self._pulls[_name(message)] = Pull(message, source, now)
        opened = PullOpened(
            self._me, message.request, message.source_key, len(message.pages), self._wire.bandwidth, message.pool
        )
        self._post.send(self._me, source, now + self._wire.latency, opened)

    def cancel(self, message: CancelPull) -> None:
        self._pulls.pop((message.request, message.key), None)

    def extend(self) -> None:
        """The leases of what is being pulled are extended."""
        when = self._loop.now() + self._wire.latency
        for pull in self._pulls.values():
            self._post.send(self._me, pull.source, when, LeaseExtended(pull.message.source_key))

    def keep(self, owner: int, keys: tuple[int, ...]) -> None:
        """Tell party `owner` that these will be pulled once there is room here."""
        when = self._loop.now() + self._wire.latency
        for key in keys:
            self._post.send(self._me, owner, when, LeaseExtended(key, waiting=True))

    def arriving(self, message: Pages) -> None:
        """Pages of a pull come in."""
        now = self._loop.now()
        pull = self._pulls.get((message.request, message.key)) or self._pulls.get((message.request, 0))
        if pull is None or pull.message.source_key != message.key:
            return
        if message.pages:
            self._ingress = pull.moved = max(now, self._ingress) + message.seconds
            pull.pages += message.pages
        if message.last:
            self._loop.at(max(now, pull.moved), None, self._arrived, (pull, message.final))

    def lost(self, message: Gone) -> None:
        """The source of a pull has nothing (more) for it."""
        pull = self._pulls.pop((message.request, message.key), None)
        if pull is not None:
            reason = "the embeddings are not staged any more"
            failed = ImportFailed(
                message.request, Status.UNAVAILABLE, reason, pull.message.attempt, Pool.MEDIA, message.key
            )
            self._door(failed)

    def _arrived(self, what: tuple[Pull, Continuation | None]) -> None:
        pull, final = what
        message, now = pull.message, self._loop.now()
        if self._pulls.get(_name(message)) is not pull:
            return
        del self._pulls[_name(message)]
        moved = pull.pages * self._wire.bytes_of(message.pool)
        times = StageTimes(transfer=now - pull.began, bytes_moved=moved, pages_pulled=pull.pages)
        if final is None:
            self._door(MediaImported(message.request, message.source_key, times, message.attempt))
        else:
            self._door(Imported(message.request, final, times, message.attempt))
        self._post.send(self._me, pull.source, now + self._wire.latency, StagedReleased(message.source_key))


def _name(message: StartPull) -> tuple[str, int]:
    return message.request, message.source_key if message.pool is Pool.MEDIA else 0

"""The requests that are open at this gateway: admission, ids, routing of tokens and notices, and counts for leak tests.

Every Generate call enters once and leaves once, with exactly one status. A request is known by two ids: the client's own (for Abort), and an
internal one that no earlier request had, so that a late token of an earlier request with the same client id can never be taken for one of this.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from triptych.runtime.core.clock import Clock
from triptych.runtime.core.control import Cancel, Completed, Failed, Interrupted, MediaNeeded, Placed, Progress
from triptych.runtime.core.errors import (
    InstanceLostError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Status,
    TriptychError,
)
from triptych.runtime.core.request import PromptReport, TokenOut
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.live import LiveRequest, SchedulerPort
from triptych.runtime.gateway.media.bringing import MediaCourier
from triptych.runtime.gateway.media.pieces import Piece

T = TypeVar("T")


@dataclass
class GatewayCounts:
    """What happened so far. `ended` counts Generate calls by status; the others count tokens and reports that were dropped."""

    ended: Counter[Status] = field(default_factory=Counter)
    unknown: int = 0  # for a request that is not open (any more)
    duplicates: int = 0
    stale: int = 0
    foreign: int = 0
    reports_missing: int = 0  # requests that ended without prefill's report


class Entry:
    """One open request. Without a live session while its input is being made a prompt; a failure then ends what is under way."""

    def __init__(self, public_id: str, internal_id: str):
        self.public_id = public_id
        self.internal_id = internal_id
        self.live: LiveRequest | None = None
        self.pieces: tuple[Piece, ...] = ()  # of its media: piece i is item i of the request
        self.parts: list[Entry] = []  # what it was taken apart into: windows of a long sound
        self.early_error: TriptychError | None = None
        self._failed = asyncio.Event()

    def fail(self, error: TriptychError) -> None:
        if self.live is not None:
            self.live.fail(error)
        elif self.early_error is None:
            self.early_error = error
            self._failed.set()
        for part in self.parts:
            part.fail(error)

    def check(self) -> None:
        """Raises the error that came before there was a session."""
        if self.early_error is not None:
            raise self.early_error

    async def unless_failed(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives. If the request fails first, `work` is cancelled and the failure raised at once."""
        doing, failing = asyncio.create_task(work), asyncio.create_task(self._failed.wait())
        try:
            await asyncio.wait((doing, failing), return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return doing.result()
        finally:
            for task in (doing, failing):
                task.cancel()
            await asyncio.gather(doing, failing, return_exceptions=True)


class OpenRequests:
    """All open requests of one gateway. Used from the event loop only."""

    def __init__(self, config: GatewayConfig, clock: Clock):
        self._config = config
        self._clock = clock
        self._entries: dict[str, Entry] = {}  # by internal id
        self._public: dict[str, Entry] = {}
        self.counts = GatewayCounts()
        self.refusing = False

    def refuse_new(self) -> None:
        """The server is about to stop: from now on `enter` raises InstanceLostError."""
        self.refusing = True

    def check_taking(self) -> None:
        """Raises InstanceLostError after `refuse_new`."""
        if self.refusing:
            raise InstanceLostError(
                "this server is shutting down; retry elsewhere or later", retry_after=self._config.retry_after
            )

    @property
    def open(self) -> int:
        """Generate calls that have arrived and not ended."""
        return len(self._public)

    @contextmanager
    def enter(self, public_id: str) -> Iterator[Entry]:
        """Hold a place for one request.

        Raises OverloadedError when all places are taken, InvalidRequestError when `public_id` is open already, InstanceLostError after
        `refuse_new`.
        """
        self.check_taking()
        if len(self._public) >= self._config.max_in_flight:
            raise OverloadedError(
                f"{self._config.max_in_flight} requests are open, the most this gateway takes; retry later",
                retry_after=self._config.retry_after,
            )
        public_id = public_id or f"req-{secrets.token_hex(8)}"
        if public_id in self._public:
            raise InvalidRequestError(
                f"request_id {public_id!r} belongs to a running request; expected one that is not in use"
            )
        entry = Entry(public_id, f"{public_id}~{secrets.token_hex(6)}")
        self._entries[entry.internal_id] = self._public[public_id] = entry
        try:
            yield entry
        finally:
            del self._entries[entry.internal_id], self._public[public_id]
            self._close(entry)

    @contextmanager
    def part(self, whole: Entry) -> Iterator[Entry]:
        """A request to the scheduler of its own for a part of an open one, which fails with it. Raises the error with which that has failed already."""
        whole.check()
        entry = Entry(whole.public_id, f"{whole.public_id}~{secrets.token_hex(6)}")
        self._entries[entry.internal_id] = entry
        whole.parts.append(entry)
        try:
            yield entry
        finally:
            del self._entries[entry.internal_id]
            whole.parts.remove(entry)
            self._close(entry)

    def _close(self, entry: Entry) -> None:
        if entry.live is not None:
            entry.live.close()
            self._add_counts(entry.live)

    def abort(self, public_id: str, error: TriptychError) -> None:
        """End one request with `error`. Raises NotFoundError for an id that is not open."""
        entry = self._public.get(public_id)
        if entry is None:
            raise NotFoundError(f"no running request has the id {public_id!r}")
        entry.fail(error)

    def fail_all(self, error: TriptychError) -> None:
        """End every request."""
        for entry in list(self._entries.values()):
            entry.fail(error)

    def introduce(self) -> None:
        """The scheduler is there (again): tell it of every request that runs."""
        for live in self._lives():
            live.introduce()

    def scheduler_lost(self) -> None:
        """There is no scheduler: requests wait for one."""
        for live in self._lives():
            live.scheduler_lost()

    def tokens(self, tokens: Iterable[TokenOut]) -> None:
        """Tokens of one step, of any requests."""
        now = self._clock.now()
        touched: dict[str, LiveRequest] = {}
        for token in tokens:
            live = self._live(token.request)
            if live is not None:
                live.session.token(token, now)
                touched[token.request] = live
        for live in touched.values():
            live.changed()

    def prompt(self, request: str, attempt: int, report: PromptReport, times: StageTimes) -> None:
        live = self._live(request)
        if live is not None:
            live.session.prompt(attempt, report, times, self._clock.now())
            live.changed()

    def notice(self, notice: Placed | Progress | Interrupted | Failed | Completed, scheduler: SchedulerPort) -> None:
        """A notice about one request. Late ones are normal: the scheduler ends a request after its client is served."""
        entry = self._entries.get(notice.request)
        if entry is not None and entry.live is not None:
            entry.live.session.notice(notice, self._clock.now())
            entry.live.changed()
        elif isinstance(notice, Interrupted):  # it waits for an answer, and its client is gone
            scheduler.send(Cancel(notice.request, "the request is not open at its gateway any more"))

    def bring(self, needed: MediaNeeded, courier: MediaCourier) -> None:
        """An encode instance lacks pixels. They are brought while the request is open and at that attempt."""
        entry = self._entries.get(needed.request)
        if entry is None or entry.live is None or not entry.live.session.needs_media(needed, self._clock.now()):
            return
        session = entry.live.session
        entry.live.changed()
        courier.bring(needed, entry.pieces, lambda: not session.ended and session.request.attempt == needed.attempt)

    def _lives(self) -> list[LiveRequest]:
        return [entry.live for entry in self._entries.values() if entry.live is not None]

    def _live(self, request: str) -> LiveRequest | None:
        entry = self._entries.get(request)
        if entry is None or entry.live is None:
            self.counts.unknown += 1
            return None
        return entry.live

    def _add_counts(self, live: LiveRequest) -> None:
        dropped = live.session.journal.counts
        self.counts.duplicates += dropped.duplicates
        self.counts.stale += dropped.stale
        self.counts.foreign += dropped.foreign
        self.counts.reports_missing += live.session.report_missing

"""The owner's end of a transfer, as `runtime/transfer/producer.py`: stages exported pages and offers them to whoever opens the key.

A key is opened once. While the connection lives the owner says so and extends the lease; when it breaks before the puller released the key, the puller is
gone for good and the staging ends. Pages are read when the device gathers them, so pages given up too early show as wrong tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from triptych.runtime.core.errors import StaleEpochError, Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import Continuation
from triptych.runtime.instance.messages import LeaseExtended, OpenStaging, StagedReleased
from triptych.runtime.instance.plan import Export, Pool
from triptych.runtime.simulation.network import End
from triptych.runtime.simulation.transfer import (
    Alive,
    Closed,
    Data,
    Final,
    Keep,
    Offer,
    Open,
    Opened,
    Release,
    Surroundings,
)


@dataclass(slots=True)
class _Staging:
    opened: OpenStaging
    waiting: deque[Export] = field(default_factory=deque)
    end: End | None = None
    final: Continuation | None = None
    complete: bool = False
    gathering: int = 0
    offers: int = 0


class SimProducer:
    """Stagings of one instance."""

    def __init__(self, ref: InstanceRef, digest: str, around: Surroundings, media_digest: str = ""):
        self.ref = ref
        self.corrupt_next = False
        self._digests = {Pool.KV: digest, Pool.MEDIA: media_digest}
        self._around = around
        self._stagings: dict[int, _Staging] = {}

    @property
    def keys(self) -> int:
        """Keys that a puller may open or has opened."""
        return len(self._stagings)

    # ---- the instance's side

    def open_staging(self, message: OpenStaging) -> None:
        self._stagings[message.key] = _Staging(message)

    def export(self, export: Export) -> None:
        """The plan that fills these pages was dispatched just now."""
        staging = self._stagings.get(export.key)
        if staging is not None:
            staging.waiting.append(export)
            self._gather(staging)

    def complete(self, key: int, continuation: Continuation | None) -> None:
        """Nothing more will be exported for `key`."""
        staging = self._stagings.get(key)
        if staging is not None:
            staging.final, staging.complete = continuation, True
            self._finish(staging)

    def close(self, key: int, status: Status, reason: str) -> bool:
        """Forget `key`; False if there is nothing to forget."""
        staging = self._stagings.pop(key, None)
        if staging is None:
            return False
        if staging.end is not None:
            staging.end.send(Closed(status, reason))
            staging.end.close(reason)
        return True

    def extend(self, message: Keep) -> None:
        """A puller waits for room."""
        if message.owner == self.ref:
            for key in message.keys:
                if key in self._stagings and self._stagings[key].end is None:
                    self._around.post(LeaseExtended(key, waiting=True))

    def restart(self, ref: InstanceRef) -> None:
        """The pools are lost: every staging ends, and the instance goes on as `ref`."""
        for key in tuple(self._stagings):
            self.close(key, Status.UNAVAILABLE, f"instance {self.ref.id} lost its pools")
        self.ref = ref

    # ---- the puller's side

    def admit(self, end: End, message: Open) -> None:
        """A puller came."""
        staging = self._stagings.get(message.key)
        if message.owner != self.ref:
            self._refuse(end, StaleEpochError.status, f"{self.ref.id} is at another epoch")
        elif staging is None:
            self._refuse(end, Status.NOT_FOUND, "nothing is staged under this key (any more)")
        elif staging.end is not None:
            self._refuse(end, Status.INVALID_ARGUMENT, "the key was opened before")
        elif (message.digest, message.first_page) != (self._digests[staging.opened.pool], staging.opened.first_page):
            self._refuse(end, Status.FAILED_PRECONDITION, "header or first page differ")
        else:
            staging.end = end
            end.on_message = lambda told: self._told(message.key, told)
            end.on_closed = lambda reason: self._left(message.key, staging, reason)
            end.send(Opened())
            self._pulse((message.key, staging))
            self._gather(staging)
            self._finish(staging)

    def _refuse(self, end: End, status: Status, reason: str) -> None:
        end.send(Closed(status, reason))
        end.close(reason)

    def _told(self, key: int, message: object) -> None:
        if isinstance(message, Release):
            staging = self._stagings.pop(key, None)
            if staging is not None and staging.end is not None:
                staging.end.close("released")
                self._around.post(StagedReleased(key))

    def _left(self, key: int, staging: _Staging, reason: str) -> None:
        if self._stagings.get(key) is staging:
            del self._stagings[key]
            self._around.post(StagedReleased(key))

    def _pulse(self, entry: tuple[int, _Staging]) -> None:
        """Signs of life in both directions, as long as the connection stands."""
        key, staging = entry
        if self._stagings.get(key) is staging and staging.end is not None and staging.end.open:
            self._around.post(LeaseExtended(key))
            staging.end.send(Alive())
            self._around.loop.after(self._around.config.alive_interval, self._around.process, self._pulse, entry)

    def _gather(self, staging: _Staging) -> None:
        if staging.end is not None and staging.waiting:
            self._around.call(lambda: self._take(staging))

    def _take(self, staging: _Staging) -> None:
        """On the device loop: pages are read after everything dispatched so far, and offered when the device got there."""
        if self._stagings.get(staging.opened.key) is not staging:
            return
        while staging.waiting:
            export = staging.waiting.popleft()
            content = tuple(self._around.device.read(page, export.pool) for page in export.pages)
            data, self.corrupt_next = Data(export.first_page, content, self.corrupt_next), False
            staging.gathering += 1
            self._around.loop.at(self._around.settled(), self._around.process, self._offer, (staging, data))

    def _offer(self, entry: tuple[_Staging, Data]) -> None:
        staging, data = entry
        if self._stagings.get(staging.opened.key) is staging and staging.end is not None:
            staging.gathering -= 1
            staging.offers += 1
            staging.end.send(Offer(data.first_page, len(data.pages)))
            staging.end.send_bulk(data, float(len(data.pages) * self._around.config.page_bytes))
            self._finish(staging)

    def _finish(self, staging: _Staging) -> None:
        if staging.complete and staging.end is not None and not staging.waiting and not staging.gathering:
            staging.end.send(Final(staging.final, staging.offers))
            staging.complete = False

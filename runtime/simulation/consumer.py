"""The puller's end of a transfer, as `runtime/transfer/pull.py`: from the handle to verified pages, or to the reason why not.

There is no retry inside a pull. Pages are written when the device loop scatters them, and never after the pull was cancelled, so pages reused too
early or too late show as wrong tokens.
"""

from __future__ import annotations

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.instance.messages import CancelPull, Imported, ImportFailed, KeepStaged, MediaImported, StartPull
from triptych.runtime.instance.plan import Pool
from triptych.runtime.simulation.network import End
from triptych.runtime.simulation.transfer import SERVICE, Closed, Data, Final, Keep, Offer, Open, Release, Surroundings


class _Pull:
    """One pull; nothing is written any more once it is not in its consumer's list."""

    __slots__ = ("began", "covered", "end", "fetching", "final", "heard", "message", "offers")

    def __init__(self, message: StartPull, end: End, now: float):
        self.message = message
        self.end = end
        self.began = self.heard = now
        self.covered: set[int] = set()
        self.offers = 0
        self.fetching = 0
        self.final: Final | None = None


class SimConsumer:
    """Pulls of one instance."""

    def __init__(self, around: Surroundings):
        self._around = around
        self._pulls: dict[tuple[str, int], _Pull] = {}  # by request and, of embeddings, the source's key

    @property
    def pulls(self) -> int:
        return len(self._pulls)

    def start(self, message: StartPull) -> None:
        """Pull; `Imported` or `ImportFailed` is posted in the end, unless it is cancelled."""
        around = self._around
        end = around.network.dial(
            around.process,
            message.source_address,
            SERVICE,
            lambda told: self._told(pull, told),
            lambda reason: self._broken(pull, reason),
        )
        pull = self._pulls[_name(message)] = _Pull(message, end, around.loop.now())
        owner = InstanceRef(message.source_instance, message.source_epoch)
        end.send(Open(owner, message.source_key, message.source_digest, message.first_page))
        around.loop.after(around.config.idle_seconds, around.process, self._check_silence, pull)
        if message.deadline is not None:
            around.loop.at(message.deadline, around.process, self._check_deadline, pull)

    def cancel(self, message: CancelPull) -> None:
        """Write nothing of this pull any more, and say nothing about it."""
        pull = self._pulls.pop((message.request, message.key), None)
        if pull is not None:
            pull.end.abort("the pull was cancelled")

    def keep(self, message: KeepStaged) -> None:
        """Tell an owner that its stagings are waited for; nobody answers, and what is lost is said again later."""
        around = self._around
        end = around.network.dial(around.process, message.address, SERVICE, lambda _: None, lambda _: None)
        end.send(Keep(message.owner, message.keys))
        end.close("said")

    def _lives(self, pull: _Pull) -> bool:
        return self._pulls.get(_name(pull.message)) is pull

    def _told(self, pull: _Pull, message: object) -> None:
        if not self._lives(pull):
            return
        pull.heard = self._around.loop.now()
        match message:
            case Offer():
                pull.offers += 1
                self._accept(pull, message)
            case Data():
                self._around.call(lambda: self._scatter(pull, message))
            case Final():
                pull.final = message
                self._finish(pull)
            case Closed():
                status = Status.CANCELLED if message.status is Status.OK else message.status
                self._fail(pull, status, f"the owner ended the staging: {message.reason}")

    def _accept(self, pull: _Pull, offer: Offer) -> None:
        begin, wanted = offer.first_page - pull.message.first_page, len(pull.message.pages)
        indices = range(begin, begin + offer.pages)
        if begin < 0 or indices.stop > wanted or pull.covered.intersection(indices):
            self._fail(pull, Status.UNAVAILABLE, f"offer of pages {list(indices)} of {wanted} was not promised")
            return
        pull.covered.update(indices)
        pull.fetching += 1

    def _scatter(self, pull: _Pull, data: Data) -> None:
        """On the device loop: the pages are written before everything dispatched later."""
        if not self._lives(pull):
            return
        for index, content in enumerate(data.pages, data.first_page - pull.message.first_page):
            self._around.device.write(pull.message.pages[index], content, pull.message.pool)
        self._around.loop.at(self._around.settled(), self._around.process, self._verified, (pull, data.corrupted))

    def _verified(self, entry: tuple[_Pull, bool]) -> None:
        pull, corrupted = entry
        if not self._lives(pull):
            return
        pull.fetching -= 1
        if corrupted:
            self._fail(pull, Status.DATA_LOSS, "a page arrived with another checksum than it was sent with")
        else:
            self._finish(pull)

    def _finish(self, pull: _Pull) -> None:
        if pull.final is None or pull.fetching:
            return
        if pull.offers != pull.final.offers or len(pull.covered) != len(pull.message.pages):
            covered, wanted = len(pull.covered), len(pull.message.pages)
            self._fail(pull, Status.UNAVAILABLE, f"the transfer was closed after {covered} of {wanted} pages")
            return
        pull.end.send(Release())  # the answer is the end of the connection; there is none to wait for if it is gone
        if pull.end.open:
            around = self._around
            around.loop.after(around.config.release_seconds, around.process, self._deliver, pull)
        else:
            self._deliver(pull)

    def _broken(self, pull: _Pull, reason: str) -> None:
        if self._lives(pull) and pull.final is not None and not pull.fetching:
            self._deliver(pull)
        else:
            self._fail(pull, Status.UNAVAILABLE, f"the transfer broke: {reason}")

    def _deliver(self, pull: _Pull) -> None:
        if self._lives(pull) and pull.final is not None:
            del self._pulls[_name(pull.message)]
            pull.end.close("everything is here")
            message, now = pull.message, self._around.loop.now()
            times = StageTimes(
                transfer=now - pull.began,
                bytes_moved=len(message.pages) * self._around.config.page_bytes,
                pages_pulled=len(message.pages),
                pages_skipped=message.first_page,
            )
            if pull.final.continuation is None:
                self._around.post(MediaImported(message.request, message.source_key, times, message.attempt))
            else:
                self._around.post(Imported(message.request, pull.final.continuation, times, message.attempt))

    def _fail(self, pull: _Pull, status: Status, reason: str) -> None:
        if self._lives(pull):
            message, key = pull.message, _name(pull.message)
            del self._pulls[key]
            pull.end.abort(reason)
            self._around.post(ImportFailed(message.request, status, reason, message.attempt, message.pool, key[1]))

    def _check_silence(self, pull: _Pull) -> None:
        if self._lives(pull):
            due, now = pull.heard + self._around.config.idle_seconds, self._around.loop.now()
            if due <= now:
                self._fail(pull, Status.DEADLINE_EXCEEDED, "the owner was silent for too long")
            else:
                self._around.loop.at(due, self._around.process, self._check_silence, pull)

    def _check_deadline(self, pull: _Pull) -> None:
        self._fail(pull, Status.DEADLINE_EXCEEDED, "the deadline passed while pulling")


def _name(message: StartPull) -> tuple[str, int]:
    return message.request, message.source_key if message.pool is Pool.MEDIA else 0

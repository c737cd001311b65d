"""Processed media in memory: held by requests, and for a while after them, so that the same picture is not processed again.

What requests hold is bounded by `limit`: more is refused. What nobody holds any more makes room, the longest unused first, and is at most `spare`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from triptych.runtime.core.errors import OverloadedError
from triptych.runtime.gateway.media.pieces import Piece

Pieces = tuple[Piece, ...]


@dataclass
class _Entry:
    pieces: Pieces
    nbytes: int
    holders: int


class PixelKeep:
    """Pieces by the identity of their medium. From the event loop only. Sizes are in bytes.

    Args:
        retry_after: seconds of the hint in a refusal.
    """

    def __init__(self, limit: int, spare: int, retry_after: float):
        self._limit = limit
        self._spare = spare
        self.retry_after = retry_after
        self._held: dict[str, _Entry] = {}
        self._idle: OrderedDict[str, _Entry] = OrderedDict()
        self.held_bytes = 0
        self.idle_bytes = 0

    def __len__(self) -> int:
        return len(self._held) + len(self._idle)

    def check_room(self) -> None:
        """Raises OverloadedError where nothing more can be held: before work is spent on it."""
        if self.held_bytes >= self._limit:
            raise self._full(0)

    def hold(self, identity: str) -> Pieces | None:
        """The pieces of a medium, held once more until `release`; None if they are not here. Raises OverloadedError as `put` does."""
        entry = self._held.get(identity)
        if entry is None:
            entry = self._idle.get(identity)
            if entry is None:
                return None
            self._begin(identity, entry)
        entry.holders += 1
        return entry.pieces

    def put(self, identity: str, pieces: Pieces) -> Pieces:
        """Take pieces in, held once; those that are here already are as good. Raises OverloadedError if they would be too many bytes."""
        here = self.hold(identity)
        if here is not None:
            return here
        entry = _Entry(pieces, sum(len(piece.data) for piece in pieces), 0)
        self._begin(identity, entry)
        entry.holders = 1
        return pieces

    def release(self, identity: str) -> None:
        """One holder needs them no more."""
        entry = self._held[identity]
        entry.holders -= 1
        if entry.holders:
            return
        del self._held[identity]
        self.held_bytes -= entry.nbytes
        self._idle[identity] = entry
        self.idle_bytes += entry.nbytes
        self._shrink()

    def _begin(self, identity: str, entry: _Entry) -> None:
        """An entry that nobody held is held from now on."""
        if self.held_bytes + entry.nbytes > self._limit:
            raise self._full(entry.nbytes)
        if self._idle.pop(identity, None) is not None:
            self.idle_bytes -= entry.nbytes
        self._held[identity] = entry
        self.held_bytes += entry.nbytes
        self._shrink()

    def _shrink(self) -> None:
        """Idle pieces go while they are too many, or while all together are."""
        while self._idle and (self.idle_bytes > self._spare or self.idle_bytes + self.held_bytes > self._limit):
            _, entry = self._idle.popitem(last=False)
            self.idle_bytes -= entry.nbytes

    def _full(self, more: int) -> OverloadedError:
        wanted = f", and {more} more do not fit" if more else ""
        return OverloadedError(
            f"open requests hold {self.held_bytes} of {self._limit} bytes of processed media{wanted}; retry later",
            retry_after=self.retry_after,
        )

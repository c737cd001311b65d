"""The media shelf: processed pixels that were brought to an encode instance, until they are encoded."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from triptych.runtime.core.errors import OverloadedError

RETRY_AFTER = 0.2  # seconds; an encode step or two, each of which takes items from the shelf


@dataclass(frozen=True)
class Pixels:
    """What an encoder takes of one item.

    Attributes:
        patches: [patches, numbers of a patch], step after step in time, each in raster order.
        grid: (time, rows, columns) of patches.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        return self.patches.nbytes


class MediaShelf:
    """Pixels by content hash, at most `limit` bytes with those that are still on their way. From any thread.

    Beyond the limit come only items that have pages in the media pool, which bounds them.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._held: dict[str, Pixels] = {}
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, and reserved for what is coming."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, hash: str) -> bool:
        return hash in self._held

    def reserve(self, nbytes: int, *, beyond: bool = False) -> None:
        """Room for an item that is about to come, even `beyond` the limit. Raises OverloadedError when there is none now."""
        with self._lock:
            if not beyond and self._bytes + nbytes > self._limit:
                raise OverloadedError(
                    f"the media shelf has {max(0, self._limit - self._bytes)} of {self._limit} bytes left; the item has {nbytes}",
                    retry_after=RETRY_AFTER,
                )
            self._bytes += nbytes

    def release(self, nbytes: int) -> None:
        """An item for which room was reserved does not come."""
        with self._lock:
            self._bytes -= nbytes

    def put(self, hash: str, pixels: Pixels) -> None:
        """An item is here; its room was reserved before."""
        with self._lock:
            if hash in self._held:
                self._bytes -= pixels.nbytes
            else:
                self._held[hash] = pixels

    def get(self, hash: str) -> Pixels | None:
        with self._lock:
            return self._held.get(hash)

    def drop(self, hash: str) -> None:
        """Forget an item; nothing happens if it is not here."""
        with self._lock:
            pixels = self._held.pop(hash, None)
            if pixels is not None:
                self._bytes -= pixels.nbytes

    def clear(self) -> None:
        """Forget every item that is here."""
        for hash in tuple(self._held):
            self.drop(hash)

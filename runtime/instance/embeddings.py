"""EmbeddingStore: which pages hold the embeddings of which media item.

A pool of its own with the machinery of KV: PagePool counts references, PrefixIndex knows what an unreferenced page holds
until it is evicted, least recently used first. A page's key is the item's hash and the page's number.

An *entry* is an item that somebody holds: an encode task that stages it, a pull that fills it, a prompt that needs it.
There is one per hash, whoever wants it (single-flight). It is *ready* once a plan that encodes it has been made, or a pull
has brought it: whatever the device does from then on may read it. It is *kept* once that is certain (the plan is done):
then its pages stay cached when the last holder lets go. An item of which a page was evicted is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triptych.runtime.instance.pages import PagePool
from triptych.runtime.instance.prefix import PrefixIndex


@dataclass(eq=False, slots=True)
class Entry:
    """An item that is held. `pull`: key of the staging from which it is being pulled. Holders are compared by identity."""

    hash: str
    pages: tuple[int, ...]
    ready: bool = False
    kept: bool = False
    pull: int | None = None
    holders: set[object] = field(default_factory=set)


class EmbeddingStore:
    """Pages 1..num_pages-1 of the media pool, `page_size` embeddings each. Sizes of items are given in embeddings, by hash."""

    def __init__(self, num_pages: int, page_size: int):
        self.page_size = page_size
        self.usable_pages = num_pages - 1
        self.index = PrefixIndex()
        self.pool = PagePool(num_pages, self.index)
        self.entries: dict[str, Entry] = {}

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def resident(self, name: str, tokens: int) -> bool:
        """Whether the embeddings are here, held or cached."""
        entry = self.entries.get(name)
        return entry.ready if entry is not None else self._cached(name, tokens) is not None

    def is_ready(self, name: str) -> bool:
        """Whether the item is held and its embeddings are there."""
        entry = self.entries.get(name)
        return entry is not None and entry.ready

    def missing(self, sizes: Mapping[str, int]) -> int:
        """Pages that `hold` would have to allocate."""
        return sum(
            self.pages_for(tokens)
            for name, tokens in sizes.items()
            if name not in self.entries and self._cached(name, tokens) is None
        )

    def taken(self, sizes: Mapping[str, int]) -> int:
        """Available pages that `hold` would take."""
        revived = sum(
            self.pages_for(tokens)
            for name, tokens in sizes.items()
            if name not in self.entries and self._cached(name, tokens) is not None
        )
        return self.missing(sizes) + revived

    def can_hold(self, sizes: Mapping[str, int]) -> bool:
        """Whether there is room for all of these at once."""
        return self.taken(sizes) <= self.pool.available

    def hold(self, holder: object, sizes: Mapping[str, int]) -> None:
        """Give `holder` a hold on every item: entries that exist, cached ones (ready), or fresh pages. The caller has checked `can_hold`."""
        fresh: list[str] = []
        for name, tokens in sizes.items():
            entry = self.entries.get(name)
            if entry is None:
                cached = self._cached(name, tokens)
                if cached is None:
                    fresh.append(name)
                    continue
                self.pool.share(cached)
                entry = self.entries[name] = Entry(name, tuple(cached), ready=True, kept=True)
            entry.holders.add(holder)
        for name in fresh:  # after all cached ones were revived: allocating evicts
            pages = self.pool.allocate(self.pages_for(sizes[name]))
            self.entries[name] = Entry(name, tuple(pages), holders={holder})

    def drop(self, holder: object, name: str) -> None:
        """`holder` lets go. The last one leaves the pages cached if they are kept, else free."""
        entry = self.entries[name]
        entry.holders.remove(holder)
        if not entry.holders:
            del self.entries[name]
            self.pool.release(entry.pages)

    def keep(self, entry: Entry) -> None:
        """The device has put the embeddings there. Nothing is done for an entry that was given up meanwhile."""
        if self.entries.get(entry.hash) is not entry or entry.kept:
            return
        entry.kept = True
        for number, page in enumerate(entry.pages):
            self.index.insert(_key(entry.hash, number), page)

    def _cached(self, name: str, tokens: int) -> list[int] | None:
        """The pages of an item that nobody holds, if all are there."""
        count = self.pages_for(tokens)
        pages = self.index.match(_key(name, number) for number in range(count))
        return pages if len(pages) == count else None


def _key(name: str, number: int) -> bytes:
    return f"{name}/{number}".encode()

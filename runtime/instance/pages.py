"""PagePool: who holds which page of a pool, of KV or of embeddings.

A page is in exactly one of three places: *free* (content worthless), *cached* (nobody refers to it, but the prefix
index knows what it holds; it is given up, oldest first, when the free ones are gone) or *referenced* (by one or more
sequences, or by an item of the embedding store). Page 0 is the null page: padding reads and writes it, nobody owns it.

Freeing takes effect at once although a plan in flight may still write the page: the device executes plans in order, so
whatever a later plan puts there comes after (see InstanceCore).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from triptych.runtime.core.errors import OverloadedError
from triptych.runtime.instance.prefix import PrefixIndex

NULL_PAGE = 0


class OutOfPagesError(OverloadedError):
    """More pages were asked for than are free or can be taken from the prefix cache."""


class PagePool:
    """Reference counts and the free list of pages 1..num_pages-1; cached pages are taken back as `index` says."""

    def __init__(self, num_pages: int, index: PrefixIndex):
        self._index = index
        self._free: list[int] = []  # given back; the last one is taken first
        self._untouched = NULL_PAGE + 1  # this page and those above were never taken
        self._references = array("I", bytes(4 * num_pages))
        self._drafted = bytearray(num_pages)

    @property
    def available(self) -> int:
        """Pages that `allocate` can give now."""
        return len(self._free) + len(self._references) - self._untouched + self._index.idle

    @property
    def free(self) -> int:
        return len(self._free) + len(self._references) - self._untouched

    @property
    def cached(self) -> int:
        return self._index.idle

    def references(self, page: int) -> int:
        return self._references[page]

    def allocate(self, count: int) -> list[int]:
        """`count` pages with one reference each, evicting as needed. All or nothing: raises OutOfPagesError."""
        if count > self.available:
            raise OutOfPagesError(f"{count} pages were needed, {self.available} are free or cached")
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            elif self._untouched < len(self._references):
                page = self._untouched
                self._untouched += 1
            else:
                page = self._index.evict()
            self._references[page] = 1
            self._drafted[page] = False
            pages.append(page)
        return pages

    def mark_drafted(self, page: int) -> None:
        """The draft model's KV of all tokens of `page` is there, too, until the page is given to somebody else."""
        self._drafted[page] = True

    def drafted(self, page: int) -> bool:
        """Whether it was marked so."""
        return bool(self._drafted[page])

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each page, which must be referenced or cached."""
        for page in pages:
            if self._references[page] == 0:
                self._index.revive(page)
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One reference less. The last one leaves the page cached if the index knows it, else free.

        Goes from the end of a block table to its start, so that the tail of a prefix is evicted before its head.
        """
        for page in reversed(pages):
            left = self._references[page] - 1
            if left < 0:
                raise AssertionError(f"page {page} was released more often than it was held")
            self._references[page] = left
            if left == 0 and not self._index.park(page):
                self._free.append(page)

    def audit(self, expected: dict[int, int]) -> None:
        """Raises AssertionError unless the pages are conserved and `expected` (page -> references) is what is held."""
        held = {page: count for page, count in enumerate(self._references) if count}
        if held != expected:
            wrong = {
                p: (held.get(p, 0), expected.get(p, 0))
                for p in held.keys() | expected.keys()
                if held.get(p) != expected.get(p)
            }
            raise AssertionError(f"page references (held, expected) differ: {wrong}")
        free, idle = {*self._free, *range(self._untouched, len(self._references))}, set(self._index.idle_pages())
        if len(free) != self.free:
            raise AssertionError("a page is in the free list twice")
        if free & idle or free & held.keys() or idle & held.keys():
            raise AssertionError("a page is in two of free, cached and referenced")
        if NULL_PAGE in free | idle | held.keys():
            raise AssertionError("the null page has an owner")
        total = len(free) + len(idle) + len(held)
        if total != len(self._references) - 1:
            raise AssertionError(f"pages are not conserved: {total} of {len(self._references) - 1}")
        self._index.audit(held.keys())

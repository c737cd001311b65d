"""Sequence: tokens, and the pages that hold their KV. It knows nothing of requests.

Three lengths, each at most the next: `committed` (the device has finished computing this KV), `scheduled` (a dispatched
plan computes it) and the tokens known to the host, or one more when the last one is still being drawn. Pages may be
shared: a cached prefix with any other sequence, and after a fork all pages that were full then. Shared pages are never
written, because writing starts at `scheduled`, and the page that holds it is never shared: a fork copies the partial
page.
"""

from __future__ import annotations

from itertools import takewhile

from triptych.runtime.core.media import MediaItem
from triptych.runtime.instance.memory import KvMemory
from triptych.runtime.instance.prefix import page_key
from triptych.runtime.instance.spans import page_extra


class BlockTable:
    """The pages of one sequence in one KV group; `view` is rebuilt only when a page was added or dropped."""

    __slots__ = ("_pages", "_view")

    def __init__(self) -> None:
        self._pages: list[int] = []
        self._view: tuple[int, ...] | None = ()

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def view(self) -> tuple[int, ...]:
        if self._view is None:
            self._view = tuple(self._pages)
        return self._view

    def extend(self, pages: list[int]) -> None:
        self._pages += pages
        self._view = None

    def swap(self, index: int, page: int) -> int:
        """Put `page` at `index`; returns the one that was there, with its reference."""
        before, self._pages[index] = self._pages[index], page
        self._view = None
        return before

    def cut(self, count: int) -> list[int]:
        """Keep the first `count` pages and return the rest."""
        dropped = self._pages[count:]
        del self._pages[count:]
        self._view = None
        return dropped


class Sequence:
    """Owns its references to pages until `evict`.

    Attributes:
        tokens: every token known to the host.
        media: what takes the place of some of them; part of the pages' keys.
        scheduled: tokens whose KV is computed by plans already made = KV index of the next input.
        committed: tokens whose KV is computed by plans already finished.
        drafted: tokens from the first on whose KV of the draft model is computed by plans already made; it lies in the same pages, of another pool,
            and may be computed again at any time.
        capacity: tokens that fit the pages held.
        generation: grows whenever the KV is given up, so that results of plans made before can be told apart.
        spare: one page per group for each fork to come, held so that forking cannot fail.
        copies: (source, destination) pages to be copied before this sequence's next row; the sources are held until
            then.
    """

    __slots__ = (
        "_keys",
        "_memory",
        "_roots",
        "capacity",
        "committed",
        "copies",
        "drafted",
        "generation",
        "media",
        "number",
        "scheduled",
        "spare",
        "tables",
        "tokens",
    )

    def __init__(
        self, memory: KvMemory, tokens: list[int], roots: tuple[bytes, ...], media: tuple[MediaItem, ...] = ()
    ):
        self._memory = memory
        self._roots = roots
        self._keys: tuple[list[bytes], ...] = tuple([[] for _ in roots])
        self.number = memory.next_number()
        self.tokens = tokens
        self.media = media
        self.tables = tuple([BlockTable() for _ in roots])
        self.scheduled = 0
        self.committed = 0
        self.drafted = 0
        self.capacity = 0
        self.generation = 0
        self.spare: list[tuple[int, ...]] = []
        self.copies: list[tuple[int, int]] = []

    @property
    def pages(self) -> tuple[int, ...]:
        """Block table of the first group, the one that plans carry."""
        return self.tables[0].view

    def pin_prefix(self, limit: int) -> int:
        """Take the longest cached prefix of whole pages within `limit` tokens; returns its tokens, now committed. Needs
        an empty table."""
        memory = self._memory
        hits = self._hits(limit)
        count = min(len(hit) for hit in hits)
        if not count:
            return 0
        for table, hit in zip(self.tables, hits, strict=True):
            memory.pool.share(hit[:count])
            table.extend(hit[:count])
        self.capacity = self.scheduled = self.committed = count * memory.page_size
        drafted = takewhile(memory.pool.drafted, self.tables[0].view)
        self.drafted = sum(1 for _ in drafted) * memory.page_size
        return self.committed

    def mark_drafted(self) -> None:
        """The first `drafted` tokens are known to be right: whoever shares full pages of them finds the draft model's KV there, too."""
        pool, pages = self._memory.pool, self.tables[0].view
        for page in reversed(pages[: self.drafted // self._memory.page_size]):
            if pool.drafted(page):
                break
            pool.mark_drafted(page)

    def cached_prefix(self, limit: int) -> int:
        """Tokens that `pin_prefix` would take now."""
        return min(len(hit) for hit in self._hits(limit)) * self._memory.page_size

    def missing(self, tokens: int, spare: int = 0) -> int:
        """Pages still to be allocated for `reserve(tokens, spare)`."""
        pages = max(0, -(-tokens // self._memory.page_size) - len(self.tables[0]))
        return (pages + max(0, spare - len(self.spare))) * len(self.tables)

    def reserve(self, tokens: int, spare: int = 0) -> None:
        """Hold pages for `tokens` tokens and for `spare` forks. All or nothing: raises OutOfPagesError."""
        pool, groups = self._memory.pool, len(self.tables)
        fresh = pool.allocate(self.missing(tokens, spare))
        for _ in range(spare - len(self.spare)):
            self.spare.append(tuple(fresh.pop() for _ in range(groups)))
        share = len(fresh) // groups
        for group, table in enumerate(self.tables):
            table.extend(fresh[group * share : (group + 1) * share])
        self.capacity = len(self.tables[0]) * self._memory.page_size

    def fork(self) -> Sequence:
        """The same tokens and KV again. Full pages are shared; the partial one is copied by the plan of the next row.

        Uses a spare page if one is held, else allocates it (raises OutOfPagesError).
        """
        memory = self._memory
        twin = Sequence(memory, list(self.tokens), self._roots, self.media)
        full, partial = divmod(self.scheduled, memory.page_size)
        own = self.spare.pop() if self.spare else tuple(memory.pool.allocate(len(self.tables)))
        for table, mine, page in zip(self.tables, twin.tables, own, strict=True):
            shared = list(table.view[:full])
            memory.pool.share(shared)
            mine.extend([*shared, page])
            if partial:
                source = table.view[full]
                memory.pool.share((source,))
                twin.copies.append((source, page))
        twin._keys = tuple(list(keys[:full]) for keys in self._keys)
        twin.scheduled = self.scheduled
        twin.committed = min(self.committed, full * memory.page_size)
        twin.drafted = min(self.drafted, full * memory.page_size)
        twin.capacity = (full + 1) * memory.page_size
        return twin

    def drop_spare(self) -> None:
        """No more forks will come."""
        for pages in self.spare:
            self._memory.pool.release(pages)
        self.spare = []

    def take_copies(self) -> list[tuple[int, int]]:
        """The copies, for the plan being made. The caller releases the sources once that plan is complete."""
        copies, self.copies = self.copies, []
        return copies

    def commit(self, computed: int) -> None:
        """The device has computed the KV of `computed` tokens: pages that became full enter the prefix index."""
        before = self.committed
        if computed <= before:
            return
        self.committed = computed
        if not self._memory.caching:
            return
        size = self._memory.page_size
        first, last = before // size, computed // size
        if first < last:
            for group, table in enumerate(self.tables):
                pages = table.view
                for index in range(first, last):
                    self._memory.index.insert(self._key(group, index), pages[index])

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on and free the pages beyond.

        Only tokens that are not committed can be taken back: committed pages may be shared or cached. Raises
        ValueError.
        """
        if length < self.committed:
            raise ValueError(f"truncate({length}) would take back committed tokens ({self.committed})")
        del self.tokens[length:]
        self.scheduled = min(self.scheduled, length)
        self.drafted = min(self.drafted, length)
        self._cut(-(-length // self._memory.page_size))

    def retract(self, length: int) -> None:
        """The KV from `length` on is of tokens that turned out to be others: it is written again, and pages beyond the next token are
        freed. Only KV that is not committed can be taken back. Raises ValueError."""
        if length < self.committed:
            raise ValueError(f"retract({length}) would take back committed tokens ({self.committed})")
        self.scheduled = min(self.scheduled, length)
        self.drafted = min(self.drafted, length)
        self._cut(length // self._memory.page_size + 1)

    def missing_to_step_back(self) -> int:
        """Pages that `step_back` allocates."""
        return len(self.tables) if len(self.tokens) % self._memory.page_size == 0 else 0

    def step_back(self) -> None:
        """The last token, whose KV is scheduled, is to be computed again: what comes out of it is not here. A full page may be shared by now,
        so a copy of it is written, and only once that is done do the pages count as computed. Raises OutOfPagesError."""
        memory, last = self._memory, len(self.tokens) - 1
        fresh = memory.pool.allocate(self.missing_to_step_back())
        for table, page in zip(self.tables, fresh, strict=False):
            self.copies.append((table.swap(last // memory.page_size, page), page))
        self.generation += 1
        self.scheduled = last
        self.committed = min(self.committed, last)
        self.drafted = min(self.drafted, last // memory.page_size * memory.page_size)

    def evict(self) -> None:
        """Give up all KV and keep the tokens, for recomputation or for good."""
        self.generation += 1
        self.scheduled = self.committed = self.drafted = 0
        if self.spare:
            self.drop_spare()
        if self.copies:
            for source, _ in self.take_copies():
                self._memory.pool.release((source,))
        self._cut(0)

    def held(self) -> list[int]:
        """Every reference to a page that this sequence owns, for audits."""
        pages = [page for table in self.tables for page in table.view]
        pages += [page for group in self.spare for page in group]
        return pages + [source for source, _ in self.copies]

    def _cut(self, pages: int) -> None:
        for table in self.tables:
            if len(table) > pages:
                self._memory.pool.release(table.cut(pages))
        self.capacity = len(self.tables[0]) * self._memory.page_size

    def _hits(self, limit: int) -> list[list[int]]:
        """Per group, the pages of the longest cached prefix of whole pages within `limit` tokens."""
        memory = self._memory
        most = limit // memory.page_size if memory.caching else 0
        return [memory.index.match(self._key(group, page) for page in range(most)) for group in range(len(self.tables))]

    def _key(self, group: int, index: int) -> bytes:
        """Prefix key of full page `index`, computed when first asked for."""
        keys, size = self._keys[group], self._memory.page_size
        while len(keys) <= index:
            start = len(keys) * size
            parent, tokens = keys[-1] if keys else self._roots[group], self.tokens[start : start + size]
            extra = page_extra(self.media, start, start + size) if self.media else b""
            keys.append(page_key(parent, tokens, extra) if extra else page_key(parent, tokens))
        return keys[index]

"""PrefixIndex: which page holds the KV of which tokens, so that a prompt that begins alike need not be computed again.

Automatic prefix caching as in vLLM (Kwon et al. 2023, arXiv 2309.06180) by chained keys: a full page's key is H(parent
key, its tokens, the media in it), and the first parent is H(extra), where extra says everything else that KV depends on (KV group, cache
salt). One lookup a page finds the longest common prefix. Keys are 128-bit BLAKE2b, so tokens are not kept and an
accidental or a chosen collision is not a concern (Python's `hash` is neither wide nor secret enough: a collision would
serve one user's KV to another).

Only full pages whose tokens are committed enter. An index entry is no reference: a page that nobody refers to waits
here, least recently used first, until it is used again or evicted.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b

KEY_BYTES = 16


def root_key(*extra: str) -> bytes:
    """The parent of a first page. Parts are length-prefixed, so ("ab", "c") and ("a", "bc") differ."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in extra:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def page_key(parent: bytes, tokens: Sequence[int], extra: bytes = b"") -> bytes:
    """Key of a full page of `tokens` that follows the page of key `parent`. `extra`: the media in it (spans.page_extra).

    Full pages of one pool are all of one size, so where the tokens end and `extra` begins is never in doubt.
    """
    return blake2b(parent + array("q", tokens).tobytes() + extra, digest_size=KEY_BYTES).digest()


class PrefixIndex:
    """Key <-> page, and the idle pages in the order in which they would be evicted."""

    def __init__(self) -> None:
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._page_of)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def idle_pages(self) -> Iterator[int]:
        """Idle pages, next to be evicted first."""
        return iter(self._idle)

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Pages of the longest prefix of `keys` that is known."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def insert(self, key: bytes, page: int) -> None:
        """Remember that `page` (referenced) holds `key`. The first page of a key keeps it; a copy stays unknown."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def park(self, page: int) -> bool:
        """The page lost its last reference: keep it as the most recently used one. False if nothing is known of it."""
        if page not in self._key_of:
            return False
        self._idle[page] = None
        return True

    def revive(self, page: int) -> None:
        """An idle page is referenced again."""
        del self._idle[page]

    def evict(self) -> int:
        """Forget the least recently used idle page and return it."""
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page

    def audit(self, referenced: AbstractSet[int]) -> None:
        """Raises AssertionError unless both directions agree and idle pages are the known ones not referenced."""
        if {page: key for key, page in self._page_of.items()} != self._key_of:
            raise AssertionError("prefix index: keys and pages disagree")
        if self._key_of.keys() - referenced != self._idle.keys():
            raise AssertionError("prefix index: idle pages are not the known pages without a reference")

"""KvMemory: the pages and the prefix index of one incarnation of an instance, and the numbering of its sequences."""

from __future__ import annotations

from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.pages import PagePool
from triptych.runtime.instance.prefix import PrefixIndex, root_key

SALTS = 256  # with which first keys are remembered; clients choose salts


class KvMemory:
    """What sequences share. Every KV group draws its pages from the one pool."""

    def __init__(self, config: InstanceConfig):
        self.page_size = config.page_size
        self.groups = config.groups
        self.caching = config.prefix_cache
        self.index = PrefixIndex()
        self.pool = PagePool(config.num_pages, self.index)
        self._sequences = 0
        self._roots: dict[tuple[str, ...], tuple[bytes, ...]] = {}

    def next_number(self) -> int:
        """A sequence number never used before in this incarnation."""
        self._sequences += 1
        return self._sequences

    def roots(self, salt: str, attended: tuple[str, ...] = ()) -> tuple[bytes, ...]:
        """Per group, the key that first pages follow. `attended`: hashes of the media that all tokens attend to; every page's key is made of
        its parent's, so those of all pages depend on them."""
        extra = (salt, *attended)
        roots = self._roots.get(extra)
        if roots is None:
            if len(self._roots) >= SALTS:
                self._roots.clear()
            roots = self._roots[extra] = tuple(root_key(group, *extra) for group in self.groups)
        return roots

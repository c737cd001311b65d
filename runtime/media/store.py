"""Upload once, use often: items kept by handle, for a bounded time and within bounded memory.

A handle is random and works only for the client that uploaded (its API key, or nobody's): a leaked one is of no use to others, and what belongs to somebody else
is answered exactly as what does not exist. When memory is short the least recently used item goes first, a client's own before those of others: an owner has a
share of the memory and cannot push everybody else out.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.media.errors import MediaLimitError, MediaNotFoundError
from triptych.runtime.media.source import MediaInput

ANONYMOUS = "anonymous"
PREFIX = "media-"


@dataclass(frozen=True)
class StoreConfig:
    """How much is kept, and for how long.

    Attributes:
        store_bytes: all items together.
        owner_bytes: the items of one client; anonymous clients are one.
        ttl: seconds that an item is kept after it was last used.
        record_bytes: what an item counts beside its own bytes, so that many tiny ones are not free.
    """

    store_bytes: int = 2**30
    owner_bytes: int = 2**28
    ttl: float = 3600.0
    record_bytes: int = 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value >= 0 if name == "record_bytes" else value > 0):
                raise ConfigError(f"media_store.{name} is {value!r}; expected a positive number")


@dataclass
class _Kept:
    item: MediaInput
    owner: str
    used: float


def owner_of(api_key: str | None) -> str:
    """The name under which a client's items are kept: a digest of its key, so that the store holds no secret."""
    return (
        ANONYMOUS
        if api_key is None
        else blake2b(api_key.encode(), digest_size=16, person=b"triptych-owner").hexdigest()
    )


class MediaStore:
    """Owns the uploaded items. Times are seconds on the caller's clock; every call first drops what has expired."""

    def __init__(self, config: StoreConfig):
        self._config = config
        self._items: OrderedDict[str, _Kept] = OrderedDict()  # least recently used first
        self._bytes_of: dict[str, int] = {}
        self.evicted = 0
        """Items dropped for want of memory."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def bytes(self) -> int:
        return sum(self._bytes_of.values())

    def put(self, item: MediaInput, owner: str, now: float) -> str:
        """Keep `item` and return its handle. Raises MediaLimitError for one that could never fit."""
        self.expire(now)
        size, most = self._size(item), min(self._config.store_bytes, self._config.owner_bytes)
        if size > most:
            raise MediaLimitError(f"the item has {size} bytes; expected at most {most} for one to be kept")
        while self._bytes_of.get(owner, 0) + size > self._config.owner_bytes:
            self._evict(next(handle for handle, kept in self._items.items() if kept.owner == owner))
        while self.bytes + size > self._config.store_bytes:
            self._evict(next(iter(self._items)))
        handle = PREFIX + secrets.token_hex(16)
        self._items[handle] = _Kept(item, owner, now)
        self._bytes_of[owner] = self._bytes_of.get(owner, 0) + size
        return handle

    def get(self, handle: str, owner: str, now: float) -> MediaInput:
        """The item; its time begins anew. Raises MediaNotFoundError."""
        self.expire(now)
        kept = self._kept(handle, owner)
        kept.used = now
        self._items.move_to_end(handle)
        return kept.item

    def delete(self, handle: str, owner: str, now: float) -> None:
        """Forget the item. Raises MediaNotFoundError."""
        self.expire(now)
        self._kept(handle, owner)
        self._drop(handle)

    def expire(self, now: float) -> None:
        """Drop what was not used for `ttl` seconds."""
        while self._items:
            handle, kept = next(iter(self._items.items()))
            if now - kept.used < self._config.ttl:
                return
            self._drop(handle)

    def _kept(self, handle: str, owner: str) -> _Kept:
        kept = self._items.get(handle)
        if kept is None or kept.owner != owner:
            raise MediaNotFoundError(
                f"no media with handle {handle[:80]!r}: it was never given to this client, or has expired, was deleted or made room for others; upload again"
            )
        return kept

    def _size(self, item: MediaInput) -> int:
        return len(item.data) + self._config.record_bytes

    def _evict(self, handle: str) -> None:
        self._drop(handle)
        self.evicted += 1

    def _drop(self, handle: str) -> None:
        kept = self._items.pop(handle)
        left = self._bytes_of[kept.owner] - self._size(kept.item)
        if left:
            self._bytes_of[kept.owner] = left
        else:
            del self._bytes_of[kept.owner]

"""What media the instances can serve, kept up to date as they come and go.

The instance that computes a prompt holds the embeddings of all its media at once; each item must fit some instance that encodes. Instances are
counted by what decides that: there are few kinds, so a question costs no walk over the cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from triptych.runtime.core.instance import Capacity, InstanceInfo, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.scheduler.reach import Reach


def pages_of(item: MediaItem, page_size: int) -> int:
    """Pages that the embeddings of `item` take; no item shares a page."""
    return -(-item.tokens // page_size)


def pages_for(media: Sequence[MediaItem], page_size: int) -> int:
    """Pages that the embeddings of all `media` take at once; equal hashes are one."""
    return sum({item.hash: pages_of(item, page_size) for item in media}.values())


def can_hold(capacity: Capacity, media: Sequence[MediaItem]) -> bool:
    """Whether an instance has room for the embeddings of `media` together."""
    return pages_for(media, capacity.page_size) <= capacity.media_pages


def can_encode(capacity: Capacity, item: MediaItem) -> bool:
    """Whether an instance that encodes can encode `item`."""
    return item.patches <= capacity.max_patches and pages_of(item, capacity.page_size) <= capacity.media_pages


def without_prompts(info: InstanceInfo) -> InstanceInfo:
    """`info` as it is for requests whose media it cannot hold."""
    return replace(info, roles=info.roles - {Role.PREFILL})


class MediaReach:
    """A multiset of instances, and what follows from it."""

    def __init__(self) -> None:
        self._takers = Reach()  # instances that take no media do not prefill here
        self._prompts: Counter[Capacity] = Counter()
        self._encoders: Counter[Capacity] = Counter()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence with media that some placement can hold; 0 if none takes media."""
        return self._takers.longest

    @property
    def kinds(self) -> frozenset[tuple[Role, Capacity]]:
        """The capacities of instances that compute prompts, and of those that encode."""
        prompts = ((Role.PREFILL, kind) for kind in self._prompts)
        return frozenset((*prompts, *((Role.ENCODE, kind) for kind in self._encoders)))

    @property
    def encodes(self) -> bool:
        """Whether some instance encodes anything."""
        return bool(self._encoders)

    def change(self, info: InstanceInfo, by: int) -> None:
        """Add `info` (`by` 1) or take it out (-1)."""
        capacity = info.capacity
        self._takers.change(info if capacity.media_pages else without_prompts(info), by)
        if Role.PREFILL in info.roles and capacity.media_pages:
            _count(self._prompts, capacity, by)
        if Role.ENCODE in info.roles and capacity.max_patches:
            _count(self._encoders, capacity, by)

    def can_serve(self, length: int, media: Sequence[MediaItem]) -> bool:
        """Whether a sequence of `length` tokens with `media` can be served."""
        return length <= self.longest and self.too_large(media) is None and self._not_encodable(media) is None

    def too_large(self, media: Sequence[MediaItem]) -> str | None:
        """Why no instance that computes prompts can hold `media`, which is not empty; None if one can."""
        if not self._prompts:
            return "the instances that compute prompts here take no media"
        if any(can_hold(kind, media) for kind in self._prompts):
            return None
        most = max(self._prompts, key=lambda kind: kind.media_pages)
        needed = pages_for(media, most.page_size)
        return f"the media need {needed} pages of embeddings; an instance that computes prompts here holds at most {most.media_pages}"

    def refused(self, media: Sequence[MediaItem]) -> str | None:
        """Why `media`, which is not empty, can never be served by what is here: it is too large for every instance of a stage. None if one can
        hold it and each item can be encoded, or nothing encodes at present."""
        return self.too_large(media) or (self._not_encodable(media) if self._encoders else None)

    def shortage(self, length: int, media: Sequence[MediaItem]) -> str:
        """Why nothing can serve a sequence of `length` tokens with `media`, which is not empty."""
        reason = self.too_large(media) or self._not_encodable(media)
        return reason or f"with media, {self._takers.shortage(length)}"

    def _not_encodable(self, media: Sequence[MediaItem]) -> str | None:
        if not self._encoders:
            return "no encode instance"
        for index, item in enumerate(media):
            if not any(can_encode(kind, item) for kind in self._encoders):
                patches = max(kind.max_patches for kind in self._encoders)
                embeddings = max(kind.media_pages * kind.page_size for kind in self._encoders)
                return (
                    f"media item {index} has {item.patches} patches and {item.tokens} embeddings; an instance that encodes here takes at most "
                    f"{patches} patches and {embeddings} embeddings"
                )
        return None


def _count(counter: Counter[Capacity], kind: Capacity, by: int) -> None:
    counter[kind] += by
    if counter[kind] == 0:
        del counter[kind]

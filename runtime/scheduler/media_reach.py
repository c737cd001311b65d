"""What media the instances can serve, kept up to date as they come and go.

The instance that computes a prompt needs room for the embeddings of its largest item at least; some instance must be able to encode that item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from triptych.runtime.core.instance import InstanceInfo, Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.scheduler.reach import Reach


def media_tokens(info: InstanceInfo) -> int:
    """Embeddings that an instance can hold for a prompt; an item has pages of its own, and the first page of the pool is nobody's."""
    return max(0, info.capacity.media_pages - 1) * info.capacity.page_size


def largest_tokens(media: Sequence[MediaItem]) -> int:
    """Embeddings of the largest item; 0 without media."""
    return max(item.tokens for item in media) if media else 0


def largest_patches(media: Sequence[MediaItem]) -> int:
    """Patches of the item that is the most to encode; 0 without media."""
    return max(item.patches for item in media) if media else 0


class MediaReach:
    """A multiset of instances and the three numbers that follow from it."""

    def __init__(self) -> None:
        self._takers = Reach()  # instances that take no media do not prefill here
        self._tokens: Counter[int] = Counter()
        self._patches: Counter[int] = Counter()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence with media that some placement can hold; 0 if none takes media."""
        return self._takers.longest

    @property
    def tokens(self) -> int:
        """Embeddings of the largest item that some instance can compute a prompt with."""
        return max(self._tokens, default=0)

    @property
    def patches(self) -> int:
        """Patches of the largest item that some instance can encode."""
        return max(self._patches, default=0)

    def change(self, info: InstanceInfo, by: int) -> None:
        """Add `info` (`by` 1) or take it out (-1)."""
        tokens = media_tokens(info)
        self._takers.change(info if tokens else replace(info, roles=info.roles - {Role.PREFILL}), by)
        if Role.PREFILL in info.roles:
            _count(self._tokens, tokens, by)
        if Role.ENCODE in info.roles:
            _count(self._patches, info.capacity.max_patches, by)

    def can_serve(self, length: int, media: Sequence[MediaItem]) -> bool:
        """Whether a sequence of `length` tokens with `media` can be served."""
        return (
            length <= self.longest and largest_tokens(media) <= self.tokens and largest_patches(media) <= self.patches
        )

    def too_large(self, media: Sequence[MediaItem]) -> str | None:
        """Why no instance that computes prompts can hold `media`, which is not empty; None if one can."""
        needed, held = largest_tokens(media), self.tokens
        if not held:
            return "the instances that compute prompts here take no media"
        if needed > held:
            return f"a media item has {needed} embeddings; the instances here hold at most {held}"
        return None

    def shortage(self, length: int, media: Sequence[MediaItem]) -> str:
        """Why nothing can serve a sequence of `length` tokens with `media`, which is not empty."""
        large = self.too_large(media)
        if large is not None:
            return large
        needed, most = largest_patches(media), self.patches
        if not most:
            return "no encode instance"
        if needed > most:
            return f"a media item has {needed} patches; the instances that encode here take at most {most}"
        return f"with media, {self._takers.shortage(length)}"


def _count(counter: Counter[int], value: int, by: int) -> None:
    counter[value] += by
    if counter[value] == 0:
        del counter[value]

"""What media the instances can serve, kept up to date as they come and go.

The instance that computes a prompt holds the embeddings of all its media at once, and one that decodes those of all that it attends to; each item
must fit some instance that encodes. Instances are
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


def attended(media: Sequence[MediaItem]) -> tuple[MediaItem, ...]:
    """Those of `media` that all tokens attend to, and that decode instances hold."""
    return tuple(item for item in media if item.attended)


def can_encode(capacity: Capacity, item: MediaItem) -> bool:
    """Whether an instance that encodes can encode `item`."""
    return item.patches <= capacity.max_patches and pages_of(item, capacity.page_size) <= capacity.media_pages


def without_prompts(info: InstanceInfo) -> InstanceInfo:
    """`info` as it is for requests whose media it cannot hold."""
    return replace(info, roles=info.roles - {Role.PREFILL})


def without_tokens(info: InstanceInfo) -> InstanceInfo:
    """`info` as it is for requests of whose media it cannot even hold what all tokens attend to."""
    return replace(info, roles=info.roles - {Role.PREFILL, Role.DECODE})


def as_serving(info: InstanceInfo, media: Sequence[MediaItem]) -> InstanceInfo:
    """`info` as it is for requests with `media`."""
    if not can_hold(info.capacity, attended(media)):
        return without_tokens(info)
    return info if can_hold(info.capacity, media) else without_prompts(info)


class MediaReach:
    """A multiset of instances, and what follows from it."""

    def __init__(self) -> None:
        self._takers = Reach()  # instances that take no media do not prefill here
        self._attenders = Reach()  # nor do they decode here
        self._prompts: Counter[Capacity] = Counter()
        self._decoders: Counter[Capacity] = Counter()  # that take media
        self._encoders: Counter[Capacity] = Counter()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence with media that some placement can hold; 0 if none takes media."""
        return self._takers.longest

    @property
    def kinds(self) -> frozenset[tuple[Role, Capacity]]:
        """The capacities of instances that compute prompts, of those that decode and take media, and of those that encode."""
        by_role = {Role.PREFILL: self._prompts, Role.DECODE: self._decoders, Role.ENCODE: self._encoders}
        return frozenset((role, kind) for role, kinds in by_role.items() for kind in kinds)

    @property
    def encodes(self) -> bool:
        """Whether some instance encodes anything."""
        return bool(self._encoders)

    def change(self, info: InstanceInfo, by: int) -> None:
        """Add `info` (`by` 1) or take it out (-1)."""
        capacity = info.capacity
        self._takers.change(info if capacity.media_pages else without_prompts(info), by)
        self._attenders.change(info if capacity.media_pages else without_tokens(info), by)
        if Role.PREFILL in info.roles and capacity.media_pages:
            _count(self._prompts, capacity, by)
        if Role.DECODE in info.roles and capacity.media_pages:
            _count(self._decoders, capacity, by)
        if Role.ENCODE in info.roles and capacity.max_patches:
            _count(self._encoders, capacity, by)

    def can_serve(self, length: int, media: Sequence[MediaItem]) -> bool:
        """Whether a sequence of `length` tokens with `media` can be served."""
        longest = self._reach(media).longest
        return length <= longest and self.too_large(media) is None and self._not_encodable(media) is None

    def too_large(self, media: Sequence[MediaItem]) -> str | None:
        """Why no instance that computes prompts can hold `media`, which is not empty, or none that decodes what of it is attended to; None if some
        can."""
        reason = _too_large(self._prompts, "compute{} prompts", media)
        if reason is None and (items := attended(media)):
            reason = _too_large(self._decoders, "decode{}", items)
        return reason

    def refused(self, media: Sequence[MediaItem]) -> str | None:
        """Why `media`, which is not empty, can never be served by what is here: it is too large for every instance of a stage. None if one can
        hold it and each item can be encoded, or nothing encodes at present."""
        return self.too_large(media) or (self._not_encodable(media) if self._encoders else None)

    def shortage(self, length: int, media: Sequence[MediaItem]) -> str:
        """Why nothing can serve a sequence of `length` tokens with `media`, which is not empty."""
        reason = self.too_large(media) or self._not_encodable(media)
        return reason or f"with media, {self._reach(media).shortage(length)}"

    def _reach(self, media: Sequence[MediaItem]) -> Reach:
        return self._attenders if any(item.attended for item in media) else self._takers

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


def _too_large(kinds: Counter[Capacity], does: str, media: Sequence[MediaItem]) -> str | None:
    if not kinds:
        return f"the instances that {does.format('')} here take no media"
    if any(can_hold(kind, media) for kind in kinds):
        return None
    most = max(kinds, key=lambda kind: kind.media_pages)
    needed = pages_for(media, most.page_size)
    what = does.format("s")
    return f"the media need {needed} pages of embeddings; an instance that {what} here holds at most {most.media_pages}"


def _count(counter: Counter[Capacity], kind: Capacity, by: int) -> None:
    counter[kind] += by
    if counter[kind] == 0:
        del counter[kind]

"""Which media items lie in a run of prompt tokens, and what that makes of page keys and rows.

Items are in order of their offsets and do not overlap (core.request.Request), so those of a run are found by bisection. Those that are
attended to come first, end where they begin, at 0, and so lie in no run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from triptych.runtime.core.media import MediaItem

OFFSET_BYTES = 8


def overlapping(media: tuple[MediaItem, ...], start: int, end: int) -> Iterator[MediaItem]:
    """The items of which a token lies in [start, end), in order."""
    for index in range(bisect_right(media, start, key=lambda item: item.end), len(media)):
        item = media[index]
        if item.offset >= end:
            return
        yield item


def attended(media: tuple[MediaItem, ...]) -> tuple[MediaItem, ...]:
    """The items that all tokens attend to."""
    return tuple(item for item in media if item.attended)


def needed(media: tuple[MediaItem, ...], cached: int) -> Iterator[MediaItem]:
    """The items without which nothing behind the first `cached` tokens can be computed, in order."""
    return (item for item in media if item.attended or item.end > cached)


def page_extra(media: tuple[MediaItem, ...], start: int, end: int) -> bytes:
    """What the key of the page of tokens [start, end) has besides their ids: which items cover it and where they begin, counted from the
    page's start. Empty for a page of text."""
    extra = b""
    for item in overlapping(media, start, end):
        name = item.hash.encode()
        extra += len(name).to_bytes(OFFSET_BYTES, "little") + name
        extra += (item.offset - start).to_bytes(OFFSET_BYTES, "little", signed=True)
    return extra


def difference(media: tuple[MediaItem, ...], prompt: int) -> str | None:
    """What is wrong with the places of `media` in a prompt of `prompt` tokens, if anything."""
    behind = 0
    for index, item in enumerate(media):
        if item.tokens < 1 or item.patches < 1:
            return (
                f"media item {index} has {item.tokens} tokens and {item.patches} patches; expected at least one of each"
            )
        if item.attended and (item.offset or behind):
            return f"media item {index} is attended to by all tokens; expected it at offset 0, before those that have places"
        if item.offset < behind or item.end > prompt:
            return (
                f"media item {index} takes tokens {item.offset}..{item.end - 1}; expected places in order, without overlaps, "
                f"in a prompt of {prompt} tokens"
            )
        behind = item.end
    return None

"""Positions of a prompt with media for models of three positions a token (M-RoPE; Qwen2-VL, arXiv 2409.12191).

They follow from the media items and the index of a token alone, so every instance knows those of every token, wherever a chunk, a cached prefix or a
resumed sample begins. Text counts up in all three. A medium begins where the text before it ends: its embeddings stand at their step in time, row and
column from there, and the text behind goes on after the largest of these.
"""

from __future__ import annotations

from collections.abc import Iterator

from triptych.runtime.core.media import MediaItem
from triptych.runtime.instance.plan import Place


def places(media: tuple[MediaItem, ...]) -> Iterator[tuple[MediaItem, Place]]:
    """Each item of a prompt with its place, in order."""
    index = position = origin = 0  # of the first token behind the items so far, and where the present medium begins
    for item in media:
        if item.attended:
            continue
        steps, rows, columns = item.grid
        if item.later is None:
            origin = position = position + item.offset - index
        time = origin + (item.later or 0)
        position = max(position, time + steps, origin + rows, origin + columns)
        index = item.end
        yield item, Place((steps, rows, columns), time, origin, position)


def offset_at(media: tuple[MediaItem, ...], index: int) -> int:
    """The position of the text token at `index`, minus its index."""
    offset = 0
    for item, place in places(media):
        if item.offset >= index:
            break
        offset = place.following - item.end
    return offset


def difference(media: tuple[MediaItem, ...]) -> str | None:
    """What is wrong with the grids of `media` for such a model, if anything."""
    end = 0
    for number, item in enumerate(media):
        if item.attended:
            continue
        grid = item.grid
        if len(grid) != 3 or min(grid) < 1 or grid[0] * grid[1] * grid[2] != item.tokens:
            return f"media item {number} has {item.tokens} tokens and a grid of {grid}; expected (time, rows, columns) of as many"
        if item.later is not None and (number == 0 or item.offset != end):
            return f"media item {number} is a later step of a medium; expected it right behind the step before"
        end = item.end
    return None

"""Prompts with media: each placeholder becomes as many image tokens as the item has embedding rows.

Works on token ids, after templating and tokenising. The result says where every item's rows lie, which is what prefill
replaces, what prefix keys are salted with, and what M-RoPE positions are computed from. numpy only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from triptych.models.errors import MediaShapeError, UnsupportedModelError
from triptych.models.multimodal.config import MediaMarkers


@dataclass(frozen=True)
class MarkerIds:
    """`MediaMarkers` as token ids. `placeholders` are the tokens that stand for an item and are repeated."""

    placeholders: tuple[int, ...]
    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class MediaSpan:
    """The `count` tokens from `offset` whose embeddings an item's rows replace."""

    offset: int
    count: int


@dataclass(frozen=True)
class ExpandedPrompt:
    """Token ids, int32 [tokens], and a span for each item, in the order of the items."""

    tokens: np.ndarray
    spans: tuple[MediaSpan, ...]


def marker_ids(markers: MediaMarkers, id_of: Callable[[str], int | None]) -> MarkerIds:
    """The markers in a vocabulary. Raises UnsupportedModelError if it lacks one that the model needs."""

    def known(piece: str | None) -> int | None:
        if piece is None:
            return None
        found = id_of(piece)
        if found is None:
            raise UnsupportedModelError(f"the tokenizer has no {piece!r}, which this model needs around its media")
        return found

    placeholders = (markers.image_id,) if markers.video_id is None else (markers.image_id, markers.video_id)
    return MarkerIds(placeholders, known(markers.before), known(markers.after))


def expand(tokens: Sequence[int], counts: Sequence[int], markers: MarkerIds) -> ExpandedPrompt:
    """Repeat the n-th placeholder of a prompt `counts[n]` times.

    The tokens that belong before and after are added where they are not there already. Raises MediaShapeError if the
    prompt has more or fewer placeholders than there are items, or an item has no rows.
    """
    places = [at for at, token in enumerate(tokens) if token in markers.placeholders]
    if len(places) != len(counts):
        raise MediaShapeError(f"the prompt has {len(places)} places for media, but {len(counts)} items came with it")
    if any(count < 1 for count in counts):
        raise MediaShapeError(f"every item needs at least one embedding row, got {list(counts)}")
    out: list[int] = []
    spans: list[MediaSpan] = []
    done = 0
    for place, count in zip(places, counts, strict=True):
        out.extend(tokens[done:place])
        if markers.before is not None and (not out or out[-1] != markers.before):
            out.append(markers.before)
        spans.append(MediaSpan(len(out), count))
        out.extend([tokens[place]] * count)
        done = place + 1
        if markers.after is not None and (done == len(tokens) or tokens[done] != markers.after):
            out.append(markers.after)
    out.extend(tokens[done:])
    return ExpandedPrompt(np.asarray(out, np.int32), tuple(spans))

"""Prompts with media: what stands for a medium becomes as many tokens as it has embeddings, and items know where they are."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.prompt import expand
from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.core.media import MediaItem
from triptych.runtime.gateway.media.pieces import Medium
from triptych.runtime.gateway.model import MediaModel


def expanded(
    ids: Sequence[int], media: Sequence[Medium], model: MediaModel, field: str
) -> tuple[tuple[int, ...], tuple[MediaItem, ...]]:
    """The prompt with every placeholder repeated, and the items. `field` names the prompt in errors.

    Raises InvalidRequestError unless there is one placeholder for each medium.
    """
    places = sum(token in model.markers.placeholders for token in ids)
    if places != len(media):
        raise InvalidRequestError(
            f"{field}: {places} of its tokens stand for media ({model.placeholder!r}), and {len(media)} media came with it; expected as many"
        )
    if not media:
        return tuple(ids), ()
    try:
        prompt = expand(ids, [medium.tokens for medium in media], model.markers)
    except MediaShapeError as error:
        raise InvalidRequestError(f"{field}: {error}") from error
    items: list[MediaItem] = []
    for medium, span in zip(media, prompt.spans, strict=True):
        at = span.offset
        for piece in medium.pieces:
            items.append(piece.at(at))
            at += piece.tokens
    return tuple(prompt.tokens.tolist()), tuple(items)

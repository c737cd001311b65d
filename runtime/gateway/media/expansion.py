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

    A model that was not trained on videos sees one as its frames, each in a place of its own.

    Raises InvalidRequestError unless there is one placeholder for each medium.
    """
    found = [token for token in ids if token in model.markers.placeholders]
    if len(found) != len(media):
        raise InvalidRequestError(
            f"{field}: {len(found)} of its tokens stand for media ({model.placeholder!r}), and {len(media)} media came with it; expected as many"
        )
    if not media:
        return tuple(ids), ()
    for number, (token, medium) in enumerate(zip(found, media, strict=True), start=1):
        if token != model.token(medium.kind):
            raise InvalidRequestError(
                f"{field}: place {number} of its media is not one for {medium.kind.value}, which {medium.field} is; expected "
                f"{model.placeholders[medium.kind]!r} there"
            )
    groups = [medium.places(model.takes_videos) for medium in media]
    tallies = iter(map(len, groups))
    ids = [token for one in ids for token in [one] * (next(tallies) if one in model.markers.placeholders else 1)]
    places = [pieces for group in groups for pieces in group]
    try:
        prompt = expand(ids, [sum(piece.tokens for piece in pieces) for pieces in places], model.markers)
    except MediaShapeError as error:
        raise InvalidRequestError(f"{field}: {error}") from error
    items: list[MediaItem] = []
    for pieces, span in zip(places, prompt.spans, strict=True):
        at = span.offset
        for piece in pieces:
            items.append(piece.at(at))
            at += piece.tokens
    return tuple(prompt.tokens.tolist()), tuple(items)

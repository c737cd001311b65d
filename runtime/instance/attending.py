"""Whether a reservation may take room for the media that its tokens attend to.

It takes that room before its prompt is computed. On an instance that encodes as well the prompt's own items may have to be encoded in the
same pool, and those of requests that decode on other such instances: room is left for them, or reservations and encode tasks could wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable

from triptych.runtime.core.instance import Role
from triptych.runtime.core.media import MediaItem
from triptych.runtime.core.request import Request
from triptych.runtime.instance.lifecycle import Kind, State
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.spans import attended
from triptych.runtime.instance.state import InstanceState


def can_attend(state: InstanceState, request: Request) -> bool:
    """Whether there is room now. Prompts that wait for room already go first."""
    media, items = state.media, attended(request.media)
    if media is None or not items:
        return True
    sizes = {item.hash: item.tokens for item in items}
    kept = max([_kept(state, media, one) for one in (request, *_reserved(state))])
    if media.store.taken(sizes) + kept > media.store.pool.available:
        return False
    return media.beside.first_roomless is None or not media.store.missing(sizes)


def difference(state: InstanceState, request: Request) -> str | None:
    """Why what `request` attends to can never be held for a reservation, if so."""
    media, items = state.media, attended(request.media)
    if media is None or not items:
        return None
    needed, most = _pages(media, items), media.store.usable_pages - _kept(state, media, request)
    if needed <= most:
        return None
    return f"decoding it needs {needed} pages of embeddings; beside what it encodes the instance has {max(0, most)}"


def _kept(state: InstanceState, media: MediaMemory, request: Request) -> int:
    """Pages that are left for encoding: half of them, or as many as the rest of the request needs."""
    if Role.ENCODE not in state.config.roles:
        return 0
    rest = _pages(media, request.media) - _pages(media, attended(request.media))
    return max(media.store.usable_pages // 2, rest)


def _reserved(state: InstanceState) -> list[Request]:
    """Requests whose prompts are not here yet, and that attend to media."""
    if Role.ENCODE not in state.config.roles:
        return []
    waiting = (State.RESERVED, State.IMPORTING)
    return [
        task.request
        for task in state.tasks.values()
        if task.kind is Kind.DECODE and task.state in waiting and task.media is not None
    ]


def _pages(media: MediaMemory, items: Iterable[MediaItem]) -> int:
    return sum(media.store.pages_for(tokens) for tokens in {item.hash: item.tokens for item in items}.values())

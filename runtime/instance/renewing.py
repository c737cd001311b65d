"""Leases of embeddings that wait for room here: their owner is told, again and again, that they will be pulled.

Without this a prompt that waits longer for its pages than a lease lasts would find its embeddings gone and want them encoded again, the more
often the busier everything is. The owner may still give them up for others when all that it has is waited for in this way (expiry.py).
"""

from __future__ import annotations

from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.instance.messages import InstanceMessage, KeepStaged
from triptych.runtime.instance.state import InstanceState

RENEW = 1.0  # seconds, as signs of life of a pull: leases last several of them


def renew(state: InstanceState, now: float) -> list[InstanceMessage]:
    """One message an owner whose stagings are waited for. Not due costs one comparison."""
    media = state.media
    if media is None or now < media.renew_at:
        return []
    media.renew_at = now + RENEW
    owners: dict[tuple[str, InstanceRef], dict[int, None]] = {}
    for gathering in media.beside:
        feeds = gathering.fill.task.media.feeds if gathering.fill.task.media is not None else {}
        for key, feed in feeds.items():
            if not feed.local and feed.pages is None:
                owners.setdefault((feed.source.address, feed.source.owner), {})[key] = None
    return [KeepStaged(address, owner, tuple(keys)) for (address, owner), keys in owners.items()]

"""Leases of embeddings that wait for room here: their owner is told, again and again, that they will be pulled.

Without this a prompt that waits longer for its pages than a lease lasts would find its embeddings gone and want them encoded again, the more
often the busier everything is. The owner may still give them up for others when all that it has is waited for in this way (expiry.py).
"""

from __future__ import annotations

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.instance.lifecycle import Trigger
from triptych.runtime.instance.messages import InstanceMessage, KeepStaged
from triptych.runtime.instance.state import InstanceState, end_task
from triptych.runtime.instance.tasks import EncodeTask

RENEW = 1.0  # seconds, as signs of life of a pull: leases last several of them


def make_room(state: InstanceState, now: float) -> list[InstanceMessage]:
    """A prompt has been the first without room here for as long as a lease: of what is staged for pullers that have none either the youngest gives
    way. Two instances that encode for each other's prompts could wait for ever. Not due costs one comparison."""
    media = state.media
    if media is None or now < media.renew_at:
        return []
    first, before = media.beside.first_roomless, media.roomless
    if first is None or before is None or before[0] is not first:
        media.roomless = None if first is None else (first, now)
        return []
    staged = [task for task in state.staged.values() if isinstance(task, EncodeTask) and task.waited_for]
    youngest = max(staged, key=lambda task: task.serial, default=None)
    if youngest is None or now < before[1] + youngest.lease_seconds:
        return []
    media.roomless = first, now
    reason = "its puller had no room for it for as long as a lease, and a prompt here needs the room"
    return end_task(state, youngest, Trigger.FAILED, Status.UNAVAILABLE, reason)


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

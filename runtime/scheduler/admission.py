"""Who is let in. A request that cannot be served, or would wait in a queue without bound, is refused at once with a reason.

While no instance can serve at all, nothing is known of what will be served: requests wait then, as long as patience lasts.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Request
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.state import Phase


@dataclass(frozen=True)
class Refusal:
    """Why a request is not served, and whether and when trying again may help."""

    status: Status
    reason: str
    retry_after: float | None = None


def refusal(
    request: Request,
    config: SchedulerConfig,
    *,
    now: float,
    queued: int,
    longest: int,
    live: Phase | None,
    media: str | None = None,
) -> Refusal | None:
    """Why `request` is not admitted, or None.

    Args:
        queued: requests that wait already.
        longest: tokens of the longest sequence that the cluster can serve; 0 if it can serve none.
        live: the phase of a live request with the same id, if there is one.
        media: why the cluster can never hold or encode the request's media; None if it can.
    """
    if live is Phase.ENDING:
        return Refusal(
            Status.UNAVAILABLE,
            f"the last request with id {request.id!r} is still being released; try again",
            config.retry_after,
        )
    if live is not None:
        return Refusal(
            Status.INVALID_ARGUMENT, f"a request with id {request.id!r} is already running; ids must be unique"
        )
    if not request.prompt:
        return Refusal(Status.INVALID_ARGUMENT, "prompt is empty; expected at least one token")
    if request.deadline is not None and request.deadline <= now:
        return Refusal(Status.DEADLINE_EXCEEDED, "the deadline had passed before the request was queued")
    if 0 < longest <= len(request.prompt):
        return Refusal(
            Status.INVALID_ARGUMENT,
            f"prompt has {len(request.prompt)} tokens and at least one must be generated; the longest sequence served here is {longest} tokens",
        )
    if request.media and (wrong := _misplaced(request)) is not None:
        return Refusal(Status.INVALID_ARGUMENT, wrong)
    if longest and media is not None:
        return Refusal(Status.INVALID_ARGUMENT, media)
    if queued >= config.max_queued:
        return Refusal(
            Status.RESOURCE_EXHAUSTED,
            f"{queued} requests are waiting already, which is the limit; try again later",
            config.retry_after,
        )
    return None


def _misplaced(request: Request) -> str | None:
    """Which media item does not lie in the prompt behind the one before it; None if all do."""
    behind, length = 0, len(request.prompt)
    for index, item in enumerate(request.media):
        if item.attended and (item.offset or behind):
            return (
                f"media[{index}] is attended to by all tokens; expected it at offset 0, before those that have places"
            )
        if item.tokens < 1 or item.offset < behind or item.end > length:
            place = f"tokens {item.offset} to {item.end}"
            return f"media[{index}] is at {place}; expected at least one token, in {behind} to {length} and in order"
        behind = item.end
    return None

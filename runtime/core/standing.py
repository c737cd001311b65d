"""How one request stands with the scheduler: what it was told, what it must hear next, how long it has been away. Pure.

    Submit    the first thing that a scheduler hears of a request
    Resume    a later attempt begins, from what the client has seen
    Declare   on a new stream: this request is open here, at this attempt (the scheduler may be a new one, which knows nothing)

A Resume goes out once: a broken stream does not say what it delivered, and a second one could begin an attempt beside itself, under a new scheduler
that does not know what the old one has placed. The Declare that follows says which attempt is open; if nothing runs it, the scheduler asks for the
next: at once if nothing was ever heard of the attempt, for then it may have gone down with the stream. What is not declared on a new stream, the scheduler ends by itself; so nothing needs to be remembered of requests that ended meanwhile.
"""

from __future__ import annotations

import dataclasses

from triptych.runtime.core.control import Cancel, Declare, Resume, Submit
from triptych.runtime.core.request import Request, SampleState

Told = Submit | Declare | Resume | Cancel


class Standing:
    """One request's standing.

    Args:
        request: as it will be submitted.
        away_since: since when there has been no scheduler; None if there is one.

    Attributes:
        request: under its current attempt.
        away_since: as above, kept up to date by `lost` and `introduce`.
    """

    def __init__(self, request: Request, away_since: float | None):
        self.request = request
        self.away_since = away_since
        self._outgoing: list[Told] = [Submit(request)]
        self._told = False  # whether a scheduler has ever been told of it
        self._answered = True
        self._heard = False  # whether anything was heard of the current attempt
        self._over = False  # whether the scheduler itself said how the current attempt ended

    @property
    def known(self) -> bool:
        """Whether a scheduler may be holding something for this request."""
        return self._told and not self._over

    @property
    def answered(self) -> bool:
        """Whether what the scheduler says now is about the current attempt, not an earlier one."""
        return self._answered

    def resume(self, attempt: int, samples: tuple[SampleState, ...]) -> None:
        """A new attempt begins, from `samples`: all that the client has seen."""
        self.request = dataclasses.replace(self.request, attempt=attempt)
        self._outgoing = [Resume(self.request, samples)]
        self._answered = self._heard = self._over = False

    def decline(self, reason: str) -> None:
        """The scheduler wants to go on with a request that needs nothing any more."""
        self._outgoing.append(Cancel(self.request.id, reason))

    def heard(self) -> None:
        """News of the current attempt: its Resume has arrived."""
        self._answered = self._heard = True

    def ended(self) -> None:
        """The scheduler said how the current attempt ended; it holds nothing any more."""
        self._over = True

    def take(self) -> list[Told]:
        """What a scheduler that is there must hear now; call only to send it."""
        outgoing, self._outgoing = self._outgoing, []
        self._told = self._told or bool(outgoing)
        return outgoing

    def introduce(self) -> list[Told]:
        """All that a scheduler must hear of this request on a new stream."""
        self.away_since = None
        if not self._told:
            return self.take()
        unsent = [told for told in self._outgoing if isinstance(told, Resume)]
        self._outgoing = []
        if not unsent:
            self._answered = True  # what is said on this stream answers the Declare
        return [*unsent, Declare(self.request, unheard=not self._heard)]

    def lost(self, now: float) -> None:
        """The stream to the scheduler broke."""
        self.away_since = now

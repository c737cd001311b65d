"""A generation as the gateway that holds its client sees it: its tokens, its attempts, and its end. Pure.

    RUNNING    tokens are missing
    FINISHED   every sample is finished
    FAILED     ended with `error`

What is lost while it runs makes a new attempt, which goes on from what the journal has released. The scheduler says so (Interrupted), and from the third
attempt on it waits a little before it begins, longer each time, so that a short fault does not use them all up; or it is found
here: a token that does not come while later ones are there, or a Completed without its last tokens (a worker's stream broke). A scheduler that is away
is waited for, and tokens count meanwhile. Nothing waits without a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from triptych.runtime.core.control import Completed, Failed, Interrupted, MediaNeeded, Placed, Progress
from triptych.runtime.core.errors import DeadlineError, InstanceLostError, TriptychError, error_for
from triptych.runtime.core.journal import Journal
from triptych.runtime.core.request import Finish, Request, TokenOut
from triptych.runtime.core.standing import Standing, Told


class State(Enum):
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class Patience:
    """How long a generation waits for what, in seconds, and how often it begins anew.

    Attributes:
        gap: for a missing position while later ones are here.
        last_tokens: for the last tokens after the scheduler said that the request is complete.
        scheduler: without a scheduler and without a new token; then it fails.
        again: before the third attempt, twice as long before the fourth, and so on; the second one begins at once.
        attempts: after which a loss that is found here fails it. (The scheduler bounds those that it finds.)
        retry_after: the hint that goes with a failure for lack of a scheduler.
    """

    gap: float = 10.0
    last_tokens: float = 5.0
    scheduler: float = 30.0
    again: float = 0.5
    attempts: int = 5
    retry_after: float = 1.0


class Generation:
    """One request's generation.

    Args:
        request: as submitted; its deadline is enforced here too.
        max_model_len: no token may lie at or beyond this position.
        away_since: since when there has been no scheduler to submit it to; None if there is one.

    Attributes:
        error: why it failed.
    """

    def __init__(self, request: Request, max_model_len: int, patience: Patience, away_since: float | None = None):
        self.journal = Journal(len(request.prompt), request.sampling.n, max_model_len, request.attempt)
        self.error: TriptychError | None = None
        self._standing = Standing(request, away_since)
        self._patience = patience
        self._outlives_gateway = False  # whether an instance may still decode a sample that was ended here
        self._complete_since: float | None = None
        self._gap_since: float | None = None
        self._last_token: float | None = None
        self._next: tuple[int, float] | None = None  # the attempt that the scheduler waits for, and when it begins

    @property
    def request(self) -> Request:
        """Under its current attempt."""
        return self._standing.request

    @property
    def state(self) -> State:
        if self.error is not None:
            return State.FAILED
        return State.FINISHED if self.journal.finished else State.RUNNING

    @property
    def must_cancel(self) -> bool:
        """Whether, if nobody wants it any more, the scheduler must be told to end what may still run."""
        return self._standing.known and (self._outlives_gateway or not self.journal.finished)

    # ---- what comes in --------------------------------------------------------------------------------------------------------------

    def token(self, token: TokenOut, now: float) -> Sequence[TokenOut]:
        """One token from any instance, in any order; returns those that are next for the client."""
        if self.state is not State.RUNNING:
            return ()
        self.heard(token.attempt)
        released = self.journal.push(token)
        if released:
            self._last_token = now
        if not self.journal.gapped:
            self._gap_since = None
        elif released or self._gap_since is None:
            self._gap_since = now
        self._decline_if_finished()
        return released

    def close_sample(self, sample: int, position: int, finish: Finish) -> None:
        """The gateway itself found a sample's end: the token at `position` is its last one, though instances may not know."""
        self._outlives_gateway = True
        self.journal.close_sample(sample, position, finish)
        if not self.journal.gapped:
            self._gap_since = None
        self._decline_if_finished()

    def heard(self, attempt: int) -> None:
        """Something was told of this attempt, by an instance or by the scheduler."""
        if attempt == self.journal.attempt:
            self._standing.heard()

    def notice(self, notice: Placed | MediaNeeded | Progress | Interrupted | Failed | Completed, now: float) -> bool:
        """A notice of the scheduler; whether it is about the current attempt."""
        if isinstance(notice, Interrupted):
            if self.state is State.FINISHED:
                self._standing.decline("every sample is finished")
            elif self.state is State.RUNNING and notice.attempt > self.journal.attempt:
                self._begin_soon(notice.attempt, now)
            return False
        if isinstance(notice, Failed):
            if self._standing.answered:  # or it crossed a Resume of this gateway, which begins anew at the scheduler
                self._standing.ended()
            error = error_for(notice.status, notice.reason)
            error.status = notice.status
            error.retry_after = notice.retry_after
            self.fail(error)
            return False
        self.heard(notice.attempt)
        current = notice.attempt == self.journal.attempt
        if isinstance(notice, Completed) and current:
            self._standing.ended()
            self._complete_since = now
        return current

    def fail(self, error: TriptychError) -> None:
        """End with `error`, unless every sample is already finished or it has failed before."""
        if self.state is State.RUNNING:
            self.error = error

    # ---- the scheduler --------------------------------------------------------------------------------------------------------------

    def tell(self) -> list[Told]:
        """What a scheduler that is there must hear now; call only to send it."""
        return [] if self.state is State.FAILED else self._standing.take()

    def introduce(self) -> list[Told]:
        """What a scheduler that is there (again) must hear first: it may have this request or not."""
        return self._standing.introduce() if self.state is State.RUNNING else []

    def scheduler_lost(self, now: float) -> None:
        """There is no scheduler from now on."""
        self._standing.lost(now)

    # ---- time -----------------------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time passed: see `wakes_at`."""
        if self.state is not State.RUNNING:
            return
        due = {kind for kind, at in self._timers().items() if now >= at}
        if "deadline" in due:
            self.fail(DeadlineError(f"the deadline passed after {self.journal.emitted} tokens"))
        elif "again" in due:
            assert self._next is not None
            self._begin(self._next[0])
        elif "last_tokens" in due:
            self._go_on("the request was completed, but its last tokens were lost on the way to the gateway")
        elif "gap" in due:
            self._go_on("a token was lost on the way to the gateway, later ones arrived")
        elif "scheduler" in due:
            patience = self._patience
            reason = f"the scheduler could not be reached for {patience.scheduler:g} s; retry later"
            self.fail(InstanceLostError(reason, retry_after=patience.retry_after))

    def wakes_at(self) -> float | None:
        """When `tick` must be called, if nothing else happens before."""
        return min(self._timers().values(), default=None) if self.state is State.RUNNING else None

    def stood_still(self, now: float) -> None:
        """This process did not run for a while: what came meanwhile is still to be read, so all waiting (but for the deadline) begins anew."""
        self._complete_since = None if self._complete_since is None else now
        self._gap_since = None if self._gap_since is None else now
        if self._standing.away_since is not None:
            self._standing.lost(now)

    def _timers(self) -> dict[str, float]:
        away, patience = self._standing.away_since, self._patience
        quiet = away if away is None or self._last_token is None else max(away, self._last_token)
        waits = {
            "deadline": (self.request.deadline, 0.0),
            "last_tokens": (self._complete_since, patience.last_tokens),
            "gap": (self._gap_since, patience.gap),
            "again": (None if self._next is None else self._next[1], 0.0),
            "scheduler": (quiet, patience.scheduler),
        }
        return {kind: since + wait for kind, (since, wait) in waits.items() if since is not None}

    # ---- attempts -------------------------------------------------------------------------------------------------------------------

    def _go_on(self, loss: str) -> None:
        """Begin a new attempt because of a loss that was found here; the last one fails."""
        if self.journal.attempt >= self._patience.attempts:
            self.fail(InstanceLostError(f"{loss}; this was attempt {self.journal.attempt}, the last one"))
        else:
            self._begin(self.journal.attempt + 1)

    def _begin_soon(self, attempt: int, now: float) -> None:
        """Begin an attempt that the scheduler waits for: the second one now, later ones after a while."""
        if attempt <= 2:
            self._begin(attempt)
        elif self._next is None or self._next[0] != attempt:
            self._next = attempt, now + self._patience.again * 2.0 ** (attempt - 3)

    def _begin(self, attempt: int) -> None:
        self._standing.resume(attempt, self.journal.resume(attempt))
        self._complete_since = self._gap_since = self._next = None

    def _decline_if_finished(self) -> None:
        """The last tokens of the attempt before came after all: the next one is not needed."""
        if self._next is not None and self.state is State.FINISHED:
            self._next = None
            self._standing.decline("every sample is finished")

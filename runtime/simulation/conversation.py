"""One call at a gateway: `runtime/gateway/session.py` without its text.

RUNNING   the generation goes on (core/generation.py, the very class that the live gateway uses)
SETTLING  every sample is finished; prefill's report on the prompt is missing (waits a bounded time)
DONE, FAILED
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from triptych.runtime.core import generation
from triptych.runtime.core.control import Completed, Failed, Interrupted, MediaNeeded, Placed, Progress
from triptych.runtime.core.errors import Status
from triptych.runtime.core.generation import Generation, Patience
from triptych.runtime.core.request import Request, TokenOut
from triptych.runtime.core.standing import Told


class State(Enum):
    RUNNING = "running"
    SETTLING = "settling"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class ConversationConfig:
    """`report_grace`: seconds to wait, after the last token, for prefill's report on the prompt."""

    patience: Patience = field(default_factory=Patience)
    report_grace: float = 2.0


class Conversation:
    """One request. `status` is set once it has ended."""

    def __init__(self, request: Request, max_model_len: int, config: ConversationConfig, away_since: float | None):
        self.generation = Generation(request, max_model_len, config.patience, away_since)
        self.state = State.RUNNING
        self.status: Status | None = None
        self.reason = ""
        self._grace = config.report_grace
        self._reported = False
        self._finished_since: float | None = None

    @property
    def ended(self) -> bool:
        return self.status is not None

    @property
    def attempt(self) -> int:
        return self.generation.journal.attempt

    # ---- what comes in

    def token(self, token: TokenOut, now: float) -> Sequence[TokenOut]:
        """One token from any instance, in any order; returns what the client is shown now."""
        if self.state is not State.RUNNING:
            return ()
        released = self.generation.token(token, now)
        self._follow(now)
        return released

    def prompt(self, attempt: int) -> None:
        """Prefill's report on the prompt."""
        if self.ended or (attempt != self.attempt and self._reported):
            return
        self.generation.heard(attempt)
        self._reported = True
        self._settle()

    def notice(self, notice: Placed | MediaNeeded | Progress | Interrupted | Failed | Completed, now: float) -> None:
        """A notice of the scheduler about this request."""
        if not self.ended:
            self.generation.notice(notice, now)
            self._follow(now)

    def scheduler_lost(self, now: float) -> None:
        self.generation.scheduler_lost(now)

    # ---- what goes to the scheduler

    def tell(self) -> list[Told]:
        return self.generation.tell()

    def introduce(self) -> list[Told]:
        return self.generation.introduce()

    # ---- time

    def wakes_at(self) -> float | None:
        """When `tick` must be called, if nothing else happens before; None once it has ended."""
        if self.state is State.SETTLING and self._finished_since is not None:
            return self._finished_since + self._grace
        return self.generation.wakes_at() if self.state is State.RUNNING else None

    def tick(self, now: float) -> None:
        if self.state is State.RUNNING:
            self.generation.tick(now)
            self._follow(now)
        elif self._finished_since is not None and now >= self._finished_since + self._grace:
            self._finish()

    def stood_still(self, now: float) -> None:
        """The process did not run for a while: what came meanwhile is still to be read, so all waiting begins anew."""
        self.generation.stood_still(now)
        if self._finished_since is not None:
            self._finished_since = now

    # ---- inside

    def _follow(self, now: float) -> None:
        """Take over how the generation ended, once it has."""
        if self.state is not State.RUNNING:
            return
        error = self.generation.error
        if error is not None:
            self.state, self.status, self.reason = State.FAILED, error.status, error.message
        elif self.generation.state is generation.State.FINISHED:
            self.state, self._finished_since = State.SETTLING, now
            self._settle()

    def _settle(self) -> None:
        if self.state is State.SETTLING and self._reported:
            self._finish()

    def _finish(self) -> None:
        if self.state is State.SETTLING:
            self.state, self.status = State.DONE, Status.OK

"""What a gateway decides about one open request: `runtime/gateway/session.py` without its text.

    RUNNING   tokens are missing
    SETTLING  every sample is finished; prefill's report on the prompt is missing (waits a bounded time)
    DONE, FAILED

Journal and Standing are the live gateway's own; the timers and their order are repeated here, because the live session makes protobuf messages as it goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from triptych.runtime.core.control import Completed, Failed, Interrupted, Placed, Progress
from triptych.runtime.core.errors import Status
from triptych.runtime.core.journal import Journal
from triptych.runtime.core.request import Request, TokenOut
from triptych.runtime.core.standing import Standing, Told


class State(Enum):
    RUNNING = "running"
    SETTLING = "settling"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class ConversationConfig:
    """Times in seconds, named and meant as in `GatewayConfig`."""

    final_token_grace: float = 5.0
    gap_timeout: float = 10.0
    report_grace: float = 2.0
    scheduler_patience: float = 30.0
    max_attempts: int = 5


class Conversation:
    """One request. `status` is set once it has ended."""

    def __init__(self, request: Request, max_model_len: int, config: ConversationConfig, away_since: float | None):
        self.standing = Standing(request, away_since)
        self.journal = Journal(len(request.prompt), request.sampling.n, max_model_len, request.attempt)
        self.state = State.RUNNING
        self.status: Status | None = None
        self.reason = ""
        self._config = config
        self._reported = False
        self._complete_since: float | None = None
        self._gap_since: float | None = None
        self._finished_since: float | None = None
        self._last_token: float | None = None

    @property
    def request(self) -> Request:
        """Under its current attempt."""
        return self.standing.request

    @property
    def ended(self) -> bool:
        return self.state in (State.DONE, State.FAILED)

    @property
    def outlives_client(self) -> bool:
        """Whether, if it is over now, the scheduler must be told to cancel what still runs."""
        return self.standing.known and not self.journal.finished

    # ---- what comes in

    def token(self, token: TokenOut, now: float) -> list[TokenOut]:
        """One token from any instance, in any order; returns what the client is shown now."""
        if self.state is not State.RUNNING:
            return []
        if token.attempt == self.journal.attempt:
            self.standing.heard()
        released = list(self.journal.push(token))
        if released:
            self._last_token = now
        if not self.journal.gapped:
            self._gap_since = None
        elif released or self._gap_since is None:
            self._gap_since = now
        if self.journal.finished:
            self.state = State.SETTLING
            self._finished_since = now
            self._settle()
        return released

    def prompt(self, attempt: int) -> None:
        """Prefill's report on the prompt."""
        if self.ended or (attempt != self.journal.attempt and self._reported):
            return
        if attempt == self.journal.attempt:
            self.standing.heard()
        self._reported = True
        self._settle()

    def notice(self, notice: Placed | Progress | Interrupted | Failed | Completed, now: float) -> None:
        """A notice of the scheduler about this request."""
        if self.ended:
            return
        match notice:
            case Failed():
                if self.standing.answered:
                    self.standing.ended()
                self.fail(notice.status, notice.reason)
            case Interrupted():
                if self.state is State.SETTLING:
                    self.standing.decline("every sample is finished")
                elif notice.attempt > self.journal.attempt:
                    self._resume(notice.attempt)
            case Placed():
                self.standing.heard()
            case Completed():
                if self.standing.answered:
                    self.standing.ended()
                    self._complete_since = now

    def scheduler_lost(self, now: float) -> None:
        self.standing.lost(now)

    def fail(self, status: Status, reason: str) -> None:
        """End with an error, unless every sample is already finished or the request has ended."""
        if self.state is State.RUNNING:
            self.state = State.FAILED
            self.status, self.reason = status, reason

    # ---- what goes to the scheduler

    def tell(self) -> list[Told]:
        return [] if self.state is State.FAILED else self.standing.take()

    def introduce(self) -> list[Told]:
        return [] if self.state is not State.RUNNING else self.standing.introduce()

    # ---- time

    def wakes_at(self) -> float | None:
        """When `tick` must be called, if nothing else happens before; None once it has ended."""
        if self.ended:
            return None
        config = self._config
        if self.state is State.SETTLING:
            timers = [(self._finished_since, config.report_grace)]
        else:
            timers = [
                (self.request.deadline, 0.0),
                (self._complete_since, config.final_token_grace),
                (self._gap_since, config.gap_timeout),
                (self._quiet_since, config.scheduler_patience),
            ]
        return min((since + wait for since, wait in timers if since is not None), default=None)

    def tick(self, now: float) -> None:
        config = self._config
        if self.state is State.RUNNING:
            if _due(self.request.deadline, 0.0, now):
                self.fail(Status.DEADLINE_EXCEEDED, "the deadline passed")
            elif _due(self._complete_since, config.final_token_grace, now):
                self._go_on("the request was completed, but its last tokens were lost on the way to the gateway")
            elif _due(self._gap_since, config.gap_timeout, now):
                self._go_on("a token was lost on the way to the gateway, later ones arrived")
            elif _due(self._quiet_since, config.scheduler_patience, now):
                self.fail(Status.UNAVAILABLE, "the scheduler could not be reached for too long")
        elif self.state is State.SETTLING and _due(self._finished_since, config.report_grace, now):
            self._finish()

    def stood_still(self, now: float) -> None:
        """The process did not run for a while: what came meanwhile is still to be read, so all waiting begins anew."""
        self._complete_since, self._gap_since, self._finished_since = (
            None if since is None else now for since in (self._complete_since, self._gap_since, self._finished_since)
        )
        if self.standing.away_since is not None:
            self.standing.lost(now)

    @property
    def _quiet_since(self) -> float | None:
        away = self.standing.away_since
        return away if away is None or self._last_token is None else max(away, self._last_token)

    def _go_on(self, loss: str) -> None:
        if self.journal.attempt >= self._config.max_attempts:
            self.fail(Status.UNAVAILABLE, f"{loss}; this was attempt {self.journal.attempt}, the last one")
        else:
            self._resume(self.journal.attempt + 1)

    def _resume(self, attempt: int) -> None:
        samples = self.journal.resume(attempt)
        self.standing.resume(attempt, samples if any(sample.outputs for sample in samples) else ())
        self._complete_since = self._gap_since = None

    def _settle(self) -> None:
        if self.state is State.SETTLING and self._reported:
            self._finish()

    def _finish(self) -> None:
        self.state, self.status = State.DONE, Status.OK


def _due(since: float | None, wait: float, now: float) -> bool:
    return since is not None and now >= since + wait

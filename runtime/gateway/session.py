"""One open request, from submission to its single end: a pure state machine, fed with tokens and notices, drained by its RPC.

    RUNNING   tokens are missing
    SETTLING  every sample is finished; prefill's report on the prompt is missing (usage needs it; waits a bounded time)
    DONE      ended well: everything, the Summary included, has been queued for the client
    FAILED    ended with `error`

DONE and FAILED are terminal: whatever comes later is ignored. In particular a failure that races with the last token changes nothing once every
sample is finished, and a Completed without its last tokens (a worker's stream broke) is a failure after a bounded wait, never a hang.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.control import Completed, Failed, Placed, Progress
from triptych.runtime.core.errors import DeadlineError, InstanceLostError, OverloadedError, TriptychError, error_for
from triptych.runtime.core.request import PromptReport, Request, TokenOut
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.account import Account
from triptych.runtime.gateway.assemble import SampleText, TextOptions, completion, fill_logprobs, token_detail
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.journal import Journal
from triptych.runtime.gateway.model import ServedModel


class State(Enum):
    RUNNING = "running"
    SETTLING = "settling"
    DONE = "done"
    FAILED = "failed"


TERMINAL = (State.DONE, State.FAILED)


class Session:
    """The state of one request.

    Args:
        request: as submitted; its deadline is enforced here too.
        public_id: the id that the client knows.
        options: how its text is cut.
        arrived: when the gateway got it, for timings.
    """

    def __init__(
        self,
        request: Request,
        public_id: str,
        model: ServedModel,
        options: TextOptions,
        config: GatewayConfig,
        arrived: float,
    ):
        prompt_tokens = len(request.prompt)
        self.request = request
        self.public_id = public_id
        self.state = State.RUNNING
        self.error: TriptychError | None = None
        self.journal = Journal(prompt_tokens, request.sampling.n, model.max_model_len, request.attempt)
        self._instances_decode = False  # whether an instance may still decode a sample that ended here
        self.report_missing = False  # ended without prefill's report: cached_tokens is not known
        self._scheduler_knows = False  # whether the scheduler itself said how the request ended
        self._config = config
        self._tokenizer = model.tokenizer
        self._texts = [SampleText(model.tokenizer, options) for _ in range(request.sampling.n)]
        self._account = Account(prompt_tokens, arrived)
        self._queued: list[pb.GenerateResponse] = []
        self._queued_tokens = 0
        self._open_delta: dict[int, pb.Delta] = {}  # per sample, a queued delta that may still grow
        self._complete_since: float | None = None
        self._gap_since: float | None = None
        self._finished_since: float | None = None
        self._queue(pb.GenerateResponse(prompt=pb.PromptInfo(request_id=public_id, prompt_tokens=prompt_tokens)))

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def outlives_client(self) -> bool:
        """Whether, if the session is over now, the scheduler must be told to cancel what still runs."""
        if self._scheduler_knows:
            return False
        return self._instances_decode or not self.journal.finished

    # ---- what comes in --------------------------------------------------------------------------------------------------------------

    def token(self, token: TokenOut, now: float) -> None:
        """One token from any instance, in any order."""
        if self.state is not State.RUNNING:
            return
        released = self.journal.push(token)
        for token_now in released:
            if self._emit(token_now, now):
                break  # the sample ended here; what was released behind it is not wanted
        if not self.journal.gapped:
            self._gap_since = None
        elif released or self._gap_since is None:
            self._gap_since = now
        if self.journal.finished:
            self.state = State.SETTLING
            self._finished_since = now
            self._settle(now)
        elif self._queued_tokens > self._config.max_buffered_tokens:
            self.fail(
                OverloadedError(
                    f"the client reads too slowly: {self._queued_tokens} tokens wait for it; expected at most "
                    f"{self._config.max_buffered_tokens}"
                )
            )

    def prompt(self, attempt: int, report: PromptReport, times: StageTimes, now: float) -> None:
        """Prefill's report on the prompt, and the times of that stage."""
        if self.ended or attempt != self.journal.attempt:
            return
        if self._account.report is None and report.prompt_logprobs:
            self._queue_prompt_logprobs(report)
        self._account.prompt(report, times)
        self._settle(now)

    def notice(self, notice: Placed | Progress | Failed | Completed, now: float) -> None:
        """A notice of the scheduler about this request."""
        if self.ended:
            return
        self._scheduler_knows = self._scheduler_knows or isinstance(notice, Failed | Completed)
        if isinstance(notice, Failed):
            error = error_for(notice.status, notice.reason)
            error.status = notice.status
            error.retry_after = notice.retry_after
            self.fail(error)
            return
        self._account.notice(notice)
        if isinstance(notice, Completed):
            self._complete_since = now

    def fail(self, error: TriptychError) -> None:
        """End with `error`, unless every sample is already finished or the request has ended."""
        if self.state is State.RUNNING:
            self.state = State.FAILED
            self.error = error

    def tick(self, now: float) -> None:
        """Time passed: see `wakes_at`."""
        config = self._config
        if self.state is State.RUNNING:
            if _due(self.request.deadline, 0.0, now):
                self.fail(DeadlineError(f"the deadline passed after {self._account.completion_tokens} tokens"))
            elif _due(self._complete_since, config.final_token_grace, now):
                self.fail(
                    InstanceLostError(
                        "the request was completed, but its last tokens were lost on the way to the gateway"
                    )
                )
            elif _due(self._gap_since, config.gap_timeout, now):
                self.fail(InstanceLostError("a token was lost on the way to the gateway, later ones arrived"))
        elif self.state is State.SETTLING and _due(self._finished_since, config.report_grace, now):
            self.report_missing = True
            if self.request.sampling.prompt_logprobs is not None:
                self.state = State.FAILED
                self.error = InstanceLostError(
                    "prompt_logprobs were asked for, but prefill's report was lost on the way to the gateway"
                )
            else:
                self._finish(now)

    def wakes_at(self) -> float | None:
        """When `tick` must be called, if nothing else happens before; None once the request has ended."""
        if self.ended:
            return None
        if self.state is State.SETTLING:
            timers = [(self._finished_since, self._config.report_grace)]
        else:
            timers = [
                (self.request.deadline, 0.0),
                (self._complete_since, self._config.final_token_grace),
                (self._gap_since, self._config.gap_timeout),
            ]
        return min((since + wait for since, wait in timers if since is not None), default=None)

    # ---- what goes out --------------------------------------------------------------------------------------------------------------

    def take(self) -> list[pb.GenerateResponse]:
        """Everything queued for the client, in order; the queue is empty afterwards."""
        queued, self._queued = self._queued, []
        self._open_delta.clear()
        self._queued_tokens = 0
        return queued

    def _emit(self, token: TokenOut, now: float) -> bool:
        """Queue one released token; whether it ended its sample."""
        self._account.token(now)
        piece = self._texts[token.sample].push(token)
        delta = self._open_delta.get(token.sample)
        if delta is None:
            response = pb.GenerateResponse(delta=pb.Delta(sample=token.sample))
            self._queue(response)
            delta = self._open_delta[token.sample] = response.delta
        delta.text += piece.text
        delta.tokens.append(token_detail(token, self._tokenizer))
        self._queued_tokens += 1
        if piece.finish is None:
            return False
        if token.finish is None:
            self._instances_decode = True
        self.journal.close_sample(token.sample, token.position, piece.finish)
        self._queue(pb.GenerateResponse(completion=completion(token.sample, piece.finish)))
        return True

    def _queue(self, response: pb.GenerateResponse) -> None:
        self._queued.append(response)

    def _queue_prompt_logprobs(self, report: PromptReport) -> None:
        details: Iterable[pb.TokenDetail] = (
            pb.TokenDetail(token=token, position=index) for index, (token, _) in enumerate(report.prompt_logprobs)
        )
        info = pb.PromptInfo(request_id=self.public_id, prompt_tokens=report.prompt_tokens, prompt_logprobs=details)
        for detail, (_, logprobs) in zip(info.prompt_logprobs, report.prompt_logprobs, strict=True):
            fill_logprobs(detail, logprobs, self._tokenizer)
        self._queue(pb.GenerateResponse(prompt=info))

    def _settle(self, now: float) -> None:
        if self.state is State.SETTLING and self._account.report is not None:
            self._finish(now)

    def _finish(self, now: float) -> None:
        self._queue(pb.GenerateResponse(summary=self._account.summary(now)))
        self.state = State.DONE


def _due(since: float | None, wait: float, now: float) -> bool:
    return since is not None and now >= since + wait

"""One open request, from submission to its single end: what its generation gives (core/generation.py) as a stream of messages to the client.
A pure state machine, fed with tokens and notices, drained by its RPC.

    RUNNING   tokens are missing
    SETTLING  every sample is finished; prefill's report on the prompt is missing (usage needs it; waits a bounded time)
    DONE      ended well: everything, the Summary included, has been queued for the client
    FAILED    ended with `error`

DONE and FAILED are terminal: whatever comes later is ignored. In particular a failure that races with the last token changes nothing once every
sample is finished. A new attempt goes on where the last one was lost: texts, usage and the client's stream notice nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core import generation
from triptych.runtime.core.control import Completed, Failed, Interrupted, MediaNeeded, Placed, Progress
from triptych.runtime.core.errors import InstanceLostError, OverloadedError, TriptychError
from triptych.runtime.core.generation import Generation
from triptych.runtime.core.journal import Journal
from triptych.runtime.core.request import PromptReport, Request, TokenOut
from triptych.runtime.core.standing import Told
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.account import Account
from triptych.runtime.gateway.assemble import SampleText, TextOptions, completion, fill_logprobs, token_detail
from triptych.runtime.gateway.config import GatewayConfig
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
        away_since: since when there has been no scheduler to submit it to; None if there is one.
        media_time: seconds until its media were processed, for timings.
    """

    def __init__(
        self,
        request: Request,
        public_id: str,
        model: ServedModel,
        options: TextOptions,
        config: GatewayConfig,
        arrived: float,
        away_since: float | None = None,
        media_time: float = 0.0,
    ):
        prompt_tokens = len(request.prompt)
        self.public_id = public_id
        self.state = State.RUNNING
        self.error: TriptychError | None = None
        self.report_missing = False  # ended without prefill's report: cached_tokens is not known
        self._generation = Generation(request, model.max_model_len, config.patience, away_since)
        self._config = config
        self._tokenizer = model.tokenizer
        self._texts = [SampleText(model.tokenizer, options) for _ in range(request.sampling.n)]
        self._account = Account(request, arrived, media_time)
        self._queued: list[pb.GenerateResponse] = []
        self._queued_tokens = 0
        self._open_delta: dict[int, pb.Delta] = {}  # per sample, a queued delta that may still grow
        self._finished_since: float | None = None
        self._queue(pb.GenerateResponse(prompt=pb.PromptInfo(request_id=public_id, prompt_tokens=prompt_tokens)))

    @property
    def request(self) -> Request:
        """Under its current attempt."""
        return self._generation.request

    @property
    def journal(self) -> Journal:
        return self._generation.journal

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def outlives_client(self) -> bool:
        """Whether, if the session is over now, the scheduler must be told to cancel what still runs."""
        return self._generation.must_cancel

    # ---- what comes in --------------------------------------------------------------------------------------------------------------

    def token(self, token: TokenOut, now: float) -> None:
        """One token from any instance, in any order."""
        if self.state is not State.RUNNING:
            return
        for released in self._generation.token(token, now):
            if self._emit(released, now):
                break  # the sample ended here; what was released behind it is not wanted
        self._follow(now)
        if self._queued_tokens > self._config.max_buffered_tokens:
            self.fail(
                OverloadedError(
                    f"the client reads too slowly: {self._queued_tokens} tokens wait for it; expected at most "
                    f"{self._config.max_buffered_tokens}"
                )
            )

    def prompt(self, attempt: int, report: PromptReport, times: StageTimes, now: float) -> None:
        """Prefill's report on the prompt, and the times of that stage. The first one counts: it says the same under every attempt."""
        if self.ended or (attempt != self.journal.attempt and self._account.report is not None):
            return
        self._generation.heard(attempt)
        if self._account.report is None and report.prompt_logprobs:
            self._queue_prompt_logprobs(report)
        self._account.prompt(report, times)
        self._settle(now)

    def notice(self, notice: Placed | Progress | Interrupted | Failed | Completed, now: float) -> None:
        """A notice of the scheduler about this request."""
        if self.ended:
            return
        current = self._generation.notice(notice, now)
        if current and isinstance(notice, Placed | Progress | Completed):
            self._account.notice(notice)
        self._follow(now)

    def needs_media(self, notice: MediaNeeded, now: float) -> bool:
        """The scheduler asks for pixels; whether it is about what runs now."""
        return not self.ended and self._generation.notice(notice, now)

    def fail(self, error: TriptychError) -> None:
        """End with `error`, unless every sample is already finished or the request has ended."""
        if self.state is State.RUNNING:
            self._generation.fail(error)
            self.state, self.error = State.FAILED, error

    def tell(self) -> list[Told]:
        """What a scheduler that is there must hear now; call only to send it."""
        return self._generation.tell()

    def introduce(self) -> list[Told]:
        """What a scheduler that is there (again) must hear first: it may have this request or not."""
        return self._generation.introduce()

    def scheduler_lost(self, now: float) -> None:
        """There is no scheduler from now on."""
        self._generation.scheduler_lost(now)

    def tick(self, now: float) -> None:
        """Time passed: see `wakes_at`."""
        if self.state is State.RUNNING:
            self._generation.tick(now)
            self._follow(now)
        elif self.state is State.SETTLING and self._report_due(now):
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
        if self.state is State.SETTLING and self._finished_since is not None:
            return self._finished_since + self._config.report_grace
        return self._generation.wakes_at() if self.state is State.RUNNING else None

    def stood_still(self, now: float) -> None:
        """This process did not run for a while: what came meanwhile is still to be read, so all waiting (but for the deadline) begins anew."""
        self._generation.stood_still(now)
        if self._finished_since is not None:
            self._finished_since = now

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
            self._generation.close_sample(token.sample, token.position, piece.finish)
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

    def _follow(self, now: float) -> None:
        """Take over how the generation ended, once it has."""
        if self.state is State.RUNNING and self._generation.state is generation.State.FAILED:
            self.state, self.error = State.FAILED, self._generation.error
        elif self.state is State.RUNNING and self._generation.state is generation.State.FINISHED:
            self.state = State.SETTLING
            self._finished_since = now
            self._settle(now)

    def _settle(self, now: float) -> None:
        if self.state is State.SETTLING and self._account.report is not None:
            self._finish(now)

    def _finish(self, now: float) -> None:
        self._queue(pb.GenerateResponse(summary=self._account.summary(self.journal.attempt, now)))
        self.state = State.DONE

    def _report_due(self, now: float) -> bool:
        return self._finished_since is not None and now >= self._finished_since + self._config.report_grace

"""What a request used and where its time went, composed from what the stages report."""

from __future__ import annotations

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.control import Completed, Placed, Progress
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import PromptReport, Request
from triptych.runtime.core.tasks import StageTimes


class Account:
    """Collects notices of one request; `summary` says what is known so far and waits for nothing."""

    def __init__(self, request: Request, arrived: float, media_time: float = 0.0):
        """`media_time`: seconds until the request's media were processed."""
        self._prompt_tokens = len(request.prompt)
        self._media = request.media
        self._media_time = media_time
        self._arrived = arrived
        self._first_token: float | None = None
        self._placed: Placed | None = None
        self._stages: dict[Role, StageTimes] = {}
        self._encodes: list[StageTimes] = []
        self._encoded = 0
        self._encode_attempt = 0
        self._preemptions = 0
        self.report: PromptReport | None = None
        self.completion_tokens = 0

    def token(self, now: float) -> None:
        """One token was released to the client."""
        if self._first_token is None:
            self._first_token = now
        self.completion_tokens += 1

    def prompt(self, report: PromptReport, times: StageTimes) -> None:
        """Prefill is done; it says so itself, beside the first token, because the scheduler's notice may come after the last one.

        A later attempt computes the prompt again, from what the cache has by then. Usage is what the first one reported.
        """
        if self.report is None:
            self.report = report
        self._stages[Role.PREFILL] = times

    def notice(self, notice: Placed | Progress | Completed) -> None:
        if isinstance(notice, Placed):
            self._placed = notice
        elif isinstance(notice, Progress) and notice.role is Role.ENCODE:
            if notice.attempt > self._encode_attempt:
                self._encode_attempt = notice.attempt
                self._encodes, self._encoded = [], 0
            self._encoded += notice.encoded
            self._encodes.append(notice.times)  # one for each instance that shared the work
        elif isinstance(notice, Progress):
            self._stages[notice.role] = notice.times
        else:
            self._preemptions = notice.preemptions

    def summary(self, attempts: int, now: float) -> pb.Summary:
        """`attempts`: how often the request was begun; stages' times are those of the last attempt that reported them."""
        prefill = self._stages.get(Role.PREFILL, StageTimes())
        decode = self._stages.get(Role.DECODE, StageTimes())
        timings = pb.Timings(
            queue=prefill.queue + (self._placed.queue if self._placed else 0.0),
            prefill=prefill.compute,
            transfer=decode.transfer,
            first_token=(now if self._first_token is None else self._first_token) - self._arrived,
            total=now - self._arrived,
            kv_bytes=decode.bytes_moved,
            pages_pulled=decode.pages_pulled,
            pages_skipped=decode.pages_skipped,
            prefill_instance=self._placed.prefill.id if self._placed else "",
            decode_instance=self._placed.decode.id if self._placed else "",
            preemptions=self._preemptions,
            attempts=attempts,
            media=self._media_time,
            encode=sum(times.compute for times in self._encodes),
            media_items=len(self._media),
            encode_tasks=len(self._encodes),
            encoded_items=self._encoded,
            embedding_bytes=prefill.bytes_moved + sum(times.bytes_moved for times in self._encodes),
        )
        usage = pb.Usage(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self.report.cached_tokens if self.report else 0,
            completion_tokens=self.completion_tokens,
            media_tokens=sum(item.taken for item in self._media),
        )
        return pb.Summary(usage=usage, timings=timings)

"""The session's states and timers, with time as an argument."""

from __future__ import annotations

from tests.runtime.gateway.toy_cluster import EOS, TOKENIZER, toy_model
from triptych.runtime.core.control import Completed, Failed, Submit
from triptych.runtime.core.errors import (
    CancelledByClientError,
    DeadlineError,
    OverloadedError,
    Status,
)
from triptych.runtime.core.request import Finish, FinishReason, PromptReport, Request, TokenOut
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.assemble import TextOptions
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.session import Session, State

CONFIG = GatewayConfig(
    "x:1",
    max_buffered_tokens=10,
    gap_timeout=7.0,
    final_token_grace=5.0,
    report_grace=2.0,
    max_attempts=3,
    scheduler_patience=30.0,
)
REPORT = PromptReport(2, 1)


def session(deadline: float | None = None, n: int = 1, stop: tuple[str, ...] = ()) -> Session:
    """A session whose request was submitted."""
    request = Request("r", "g", "toy", (1, 2), SamplingParams(n=n, stop=stop), deadline)
    made = Session(request, "public", toy_model(), TextOptions(2, stop), CONFIG, arrived=0.0)
    assert made.tell() == [Submit(request)]
    return made


def token(position: int, finish: bool = False, sample: int = 0, value: int = ord("a"), attempt: int = 1) -> TokenOut:
    return TokenOut("r", attempt, sample, 2 + position, value, None, Finish(FinishReason.LENGTH) if finish else None)


def test_it_ends_when_tokens_and_report_are_here_in_either_order():
    for report_first in (True, False):
        s = session()
        if report_first:
            s.prompt(1, REPORT, StageTimes(), 1.0)
        s.token(token(0), 1.0)
        s.token(token(1, finish=True), 2.0)
        if not report_first:
            assert s.state is State.SETTLING and s.wakes_at() == 4.0
            s.prompt(1, REPORT, StageTimes(), 3.0)
        assert s.state is State.DONE and s.wakes_at() is None
        assert s.take()[-1].summary.usage.cached_tokens == 1
        assert not s.outlives_client


def test_the_deadline_holds_until_the_last_token_and_not_after_it():
    s = session(deadline=10.0)
    assert s.wakes_at() == 10.0
    s.tick(9.9)
    assert s.state is State.RUNNING
    s.tick(10.0)
    assert isinstance(s.error, DeadlineError) and s.outlives_client
    s = session(deadline=10.0)
    s.token(token(0, finish=True), 9.0)
    s.tick(10.0)
    s.fail(CancelledByClientError("too late"))
    s.notice(Failed("r", Status.INTERNAL, "too late"), 10.0)
    assert s.state is State.SETTLING
    s.tick(11.0)
    assert s.state is State.DONE and s.report_missing


def test_completed_without_the_last_tokens_waits_for_them_a_bounded_time():
    s = session()
    s.notice(Completed("r"), 1.0)
    assert s.wakes_at() == 6.0
    s.token(token(0, finish=True), 5.0)
    s.prompt(1, REPORT, StageTimes(), 5.0)
    assert s.state is State.DONE


def test_each_gap_has_its_own_timeout():
    s = session()
    s.token(token(1), 1.0)
    assert s.wakes_at() == 8.0
    s.token(token(3), 5.0)
    assert s.wakes_at() == 8.0
    s.token(token(0), 7.0)
    assert s.wakes_at() == 14.0
    s.token(token(2), 8.0)
    assert s.wakes_at() is None
    s.token(token(5), 9.0)
    assert s.wakes_at() == 16.0


def test_tokens_that_wait_for_the_client_are_bounded_and_coalesce():
    s = session(n=2)
    for position in range(5):
        s.token(token(position), 1.0)
        s.token(token(position, sample=1), 1.0)
    queued = s.take()
    assert [r.WhichOneof("kind") for r in queued] == ["prompt", "delta", "delta"]
    assert [len(r.delta.tokens) for r in queued[1:]] == [5, 5]
    for position in range(5, 15):
        s.token(token(position), 2.0)
    assert s.state is State.RUNNING
    s.token(token(15), 2.0)
    assert isinstance(s.error, OverloadedError) and s.outlives_client


def test_a_stop_string_found_here_drops_what_was_released_behind_it():
    s = session(stop=("ab",))
    for position, character in ((3, "d"), (2, "c"), (1, "b")):
        s.token(token(position, value=ord(character)), 1.0)
    s.prompt(1, REPORT, StageTimes(), 1.0)
    s.token(token(0), 1.0)
    assert s.state is State.DONE and s.outlives_client
    *_, delta, completion, summary = s.take()
    assert (delta.delta.text, [t.token for t in delta.delta.tokens]) == ("", list(b"ab"))
    assert completion.completion.matched_stop == "ab"
    assert summary.summary.usage.completion_tokens == 2


def test_an_end_token_shows_no_text_and_its_text_is_no_stop_string():
    s = session(stop=("<|im_end|>",))
    end = token(1, value=EOS)._replace(finish=Finish(FinishReason.STOP))
    s.token(token(0), 1.0)
    s.token(end, 1.0)
    deltas = [r for r in s.take() if r.WhichOneof("kind") == "delta"]
    assert deltas[0].delta.text == "a" and [t.token for t in deltas[0].delta.tokens] == [ord("a"), EOS]


def test_an_unfinished_stop_string_is_shown_at_the_end_and_a_length_end_inside_a_match_is_a_stop():
    s = session(stop=("abc",))
    for position, character in enumerate("xab"):
        s.token(token(position, finish=position == 2, value=ord(character)), 1.0)
    assert s.take()[1].delta.text == "xab"
    s = session(stop=("ab", "abcd"))
    for position, character in enumerate("xabc"):
        s.token(token(position, finish=position == 3, value=ord(character)), 1.0)
    _, delta, completion = s.take()
    assert (delta.delta.text, completion.completion.finish_reason) == ("x", "stop")
    assert completion.completion.matched_stop == "ab"


def test_a_failure_keeps_the_status_even_without_a_class_of_its_own():
    s = session()
    s.notice(Failed("r", Status.PERMISSION_DENIED, "no", 3.0), 1.0)
    assert s.error is not None
    assert (s.error.status, s.error.message, s.error.retry_after) == (Status.PERMISSION_DENIED, "no", 3.0)
    assert not s.outlives_client


def test_vocabulary_of_the_tests():
    assert TOKENIZER.encode("ab") == [97, 98]

"""A request that loses what ran it goes on from what its client has seen: the session's part, with time as an argument."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.gateway.test_session import CONFIG, REPORT, session, token
from tests.runtime.gateway.toy_cluster import TOKENIZER, toy_model
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.control import Cancel, Completed, Declare, Failed, Interrupted, Placed, Resume, Submit
from triptych.runtime.core.errors import InstanceLostError, Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import (
    Finish,
    FinishReason,
    PromptReport,
    Request,
    SampleState,
    TokenOut,
)
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import StageTimes
from triptych.runtime.gateway.assemble import TextOptions
from triptych.runtime.gateway.session import Session, State

PLACED = Placed("r", InstanceRef("p0", 1), InstanceRef("d0", 1), 0.0)
LENGTH = Finish(FinishReason.LENGTH)


def texts(responses: list[pb.GenerateResponse], sample: int = 0) -> str:
    return "".join(r.delta.text for r in responses if r.WhichOneof("kind") == "delta" and r.delta.sample == sample)


def test_an_interruption_is_answered_with_all_that_was_released_and_older_tokens_no_longer_count():
    s = session(n=2)
    s.token(token(0), 1.0)
    s.token(token(2), 1.0)  # waits for position 1, so nobody has seen it
    s.token(token(0, sample=1, finish=True), 1.0)
    s.notice(Interrupted("r", 2, "d0 was lost"), 2.0)
    resumed = dataclasses.replace(s.request, attempt=2)
    assert s.tell() == [Resume(resumed, (SampleState(0, (97,)), SampleState(1, (97,), LENGTH)))]
    assert s.wakes_at() is None, "the gap belongs to the old attempt"
    s.token(token(1), 3.0)
    assert s.journal.counts.stale == 1
    s.token(token(1, attempt=2, value=ord("b")), 3.0)
    s.token(token(2, attempt=2, value=ord("c"), finish=True), 3.0)
    s.prompt(2, REPORT, StageTimes(), 3.0)
    assert s.state is State.DONE
    responses = s.take()
    assert (texts(responses), texts(responses, 1)) == ("abc", "a")
    assert responses[-1].summary.usage.completion_tokens == 4
    assert responses[-1].summary.timings.attempts == 2


def test_a_request_of_which_nothing_was_seen_says_so_of_every_sample():
    s = session(n=2)
    s.token(token(1), 1.0)
    s.notice(Interrupted("r", 2, "p0 was lost"), 2.0)
    assert s.tell() == [Resume(dataclasses.replace(s.request, attempt=2), (SampleState(0, ()), SampleState(1, ())))]


def test_an_interruption_that_was_foreseen_here_is_answered_once():
    s = session()
    s.token(token(1), 1.0)
    s.tick(8.0)
    (resume,) = s.tell()
    assert isinstance(resume, Resume) and resume.request.attempt == 2
    s.notice(Interrupted("r", 2, "d0 was lost, too"), 8.1)
    assert not s.tell() and s.journal.attempt == 2


@pytest.mark.parametrize("loss", ["gap", "end"])
def test_tokens_lost_on_their_way_make_a_new_attempt_until_there_were_enough(loss: str):
    s = session()
    for attempt in range(1, CONFIG.max_attempts + 1):
        at = 10.0 * attempt
        if loss == "gap":
            s.token(token(1, attempt=attempt), at)
        else:
            s.notice(Completed("r", attempt=attempt), at)
        s.tick(at + 8.0)
        if attempt < CONFIG.max_attempts:
            (resume,) = s.tell()
            assert isinstance(resume, Resume) and resume.request.attempt == attempt + 1
    assert isinstance(s.error, InstanceLostError) and "attempt 3, the last one" in s.error.message
    assert s.outlives_client is (loss == "gap"), "a scheduler that said Completed has nothing to cancel"


def test_an_end_that_the_scheduler_told_of_an_attempt_given_up_here_does_not_end_the_next_one():
    s = session()
    s.token(token(1), 1.0)
    s.tick(8.0)
    s.tell()
    s.notice(Completed("r"), 8.1)  # on its way while the Resume was
    assert s.wakes_at() is None
    s.fail(InstanceLostError("the client went away"))
    assert s.outlives_client, "the scheduler has a new attempt"
    s = session()
    s.notice(Completed("r"), 1.0)
    s.tick(6.0)
    s.tell()
    s.notice(PLACED, 7.0)
    s.notice(Completed("r"), 7.5)  # both on their way while the Resume was
    assert s.wakes_at() is None
    s.notice(Completed("r", attempt=2), 8.0)
    assert s.wakes_at() == 13.0
    s = session()
    s.token(token(1), 1.0)
    s.tick(8.0)
    s.tell()
    s.notice(Failed("r", Status.UNAVAILABLE, "d0 was lost"), 8.1)
    assert s.state is State.FAILED and s.outlives_client


def test_a_finished_request_declines_to_go_on():
    s = session()
    s.token(token(0, finish=True), 1.0)
    s.notice(Interrupted("r", 2, "p0 was lost"), 1.1)
    (cancel,) = s.tell()
    assert isinstance(cancel, Cancel)
    s.tick(3.0)
    assert s.state is State.DONE and s.journal.attempt == 1


def test_usage_and_prompt_logprobs_are_those_of_the_first_report():
    s = session()
    s.token(token(0), 1.0)
    s.notice(Interrupted("r", 2, "p0 was lost"), 1.0)
    s.prompt(1, PromptReport(2, 1, ((1, None), (2, None))), StageTimes(compute=1.0), 1.1)  # late, and still true
    s.prompt(2, PromptReport(2, 0, ((1, None), (2, None))), StageTimes(compute=2.0), 1.2)
    s.token(token(1, attempt=2, finish=True), 2.0)
    responses = s.take()
    assert [r.prompt.prompt_logprobs != [] for r in responses if r.WhichOneof("kind") == "prompt"] == [False, True]
    assert responses[-1].summary.usage.cached_tokens == 1
    assert responses[-1].summary.timings.prefill == 2.0


# ---- a scheduler that is away ---------------------------------------------------------------------------------------------------------


def test_without_a_scheduler_a_request_waits_for_one_and_for_tokens_but_not_for_ever():
    s = session()
    s.scheduler_lost(10.0)
    assert s.wakes_at() == 40.0
    s.token(token(0), 25.0)
    assert s.wakes_at() == 55.0, "while its tokens come it needs no scheduler"
    s.tick(55.0)
    assert isinstance(s.error, InstanceLostError) and s.error.retry_after == CONFIG.retry_after
    s = session()
    s.scheduler_lost(10.0)
    s.token(token(0, finish=True), 11.0)
    s.prompt(1, REPORT, StageTimes(), 11.0)
    assert s.state is State.DONE


def test_a_new_stream_begins_with_what_the_scheduler_may_not_know():
    request = Request("r", "g", "toy", (1, 2), SamplingParams())
    s = Session(request, "public", toy_model(), TextOptions(2), CONFIG, 0.0, away_since=0.0)
    assert s.wakes_at() == 30.0
    assert s.introduce() == [Submit(request)] and s.wakes_at() is None
    s.scheduler_lost(1.0)
    assert s.introduce() == [Declare(request, unheard=True)], "the Submit may have gone down with the stream"
    s.token(token(1), 2.0)
    s.scheduler_lost(2.5)
    assert s.introduce() == [Declare(request)], "somebody runs it"
    s.scheduler_lost(3.0)
    s.tick(9.0)
    second = dataclasses.replace(request, attempt=2)
    resume = Resume(second, (SampleState(0, ()),))
    assert s.introduce() == [resume, Declare(second, unheard=True)] and s.tell() == []
    s.scheduler_lost(10.0)
    assert s.introduce() == [Declare(second, unheard=True)], "never a second Resume: attempt 2 may run"
    s.token(token(1), 10.5)
    s.scheduler_lost(10.6)
    assert s.introduce() == [Declare(second, unheard=True)], "tokens of attempt 1 say nothing of attempt 2"
    s.notice(Completed("r"), 10.9)
    assert s.wakes_at() is None, "an older attempt's"
    s.notice(Completed("r", attempt=2), 11.0)
    assert s.wakes_at() == 16.0
    s.token(token(0, attempt=2, finish=True), 13.0)
    s.scheduler_lost(14.0)
    assert s.introduce() == [], "a finished request needs nobody"


def test_a_request_that_ended_before_it_was_submitted_is_never_submitted():
    s = Session(Request("r", "g", "toy", (1,), SamplingParams()), "x", toy_model(), TextOptions(1), CONFIG, 0.0, 0.0)
    s.fail(InstanceLostError("the client went away"))
    assert s.tell() == [] and s.introduce() == [] and not s.outlives_client


def test_a_process_that_stood_still_waits_anew():
    s = session(deadline=100.0)
    s.notice(Completed("r"), 1.0)
    s.stood_still(50.0)
    s.tick(50.0)
    assert s.state is State.RUNNING and s.wakes_at() == 55.0
    s.tick(100.0)
    assert s.state is State.FAILED, "the deadline is a point in time"


# ---- further attempts ------------------------------------------------------------------------------------------------------------------


def test_the_second_attempt_begins_at_once_and_later_ones_after_longer_and_longer():
    """A fault of three seconds must not use up five attempts."""
    s = session()
    s.tell()
    began = []
    for attempt in (2, 3, 4, 5):
        s.notice(Interrupted("r", attempt, "its pull failed"), 10.0 * attempt)
        s.notice(Interrupted("r", attempt, "asked again"), 10.0 * attempt + 0.1)
        at = 10.0 * attempt
        while not (told := s.tell()):
            at = s.wakes_at()
            assert at is not None
            s.tick(at)
        (resume,) = told
        assert isinstance(resume, Resume) and resume.request.attempt == attempt
        began.append(at - 10.0 * attempt)
    assert began == [0.0, 0.5, 1.0, 2.0]


def test_an_attempt_that_waits_is_declined_when_the_last_tokens_come_after_all():
    s = session()
    s.tell()
    tokens = TOKENIZER.encode("abc", add_special_tokens=False)
    s.notice(Interrupted("r", 2, "the stream broke"), 1.0)
    s.tell()
    s.token(_token(tokens, 0, 2), 1.0)
    s.notice(Interrupted("r", 3, "the stream broke"), 2.0)
    for index in range(1, len(tokens)):
        s.token(_token(tokens, index, 2), 2.1)
    (told,) = s.tell()
    assert isinstance(told, Cancel) and s.wakes_at() != 2.5


# ---- text ------------------------------------------------------------------------------------------------------------------------------


@given(
    cuts=st.lists(st.integers(0, 20), max_size=2),
    lost=st.integers(0, 3),
    stop=st.sampled_from([(), ("the end",), ("😀 the",), ("zz",)]),
)
def test_text_is_the_same_wherever_an_attempt_ends(cuts: list[int], lost: int, stop: tuple[str, ...]):
    """Tokens beyond a cut may have come and must not count; characters of several bytes and stop strings span the cuts."""
    tokens = TOKENIZER.encode("é😀 z the end. 😀", add_special_tokens=False)

    def play(points: list[int]) -> list[pb.GenerateResponse]:
        s = session(stop=stop)
        s.prompt(1, REPORT, StageTimes(), 0.0)
        responses: list[pb.GenerateResponse] = []
        begin = 0
        for attempt, end in enumerate([*points, len(tokens)], start=1):
            for index in range(begin, min(end, len(tokens))):
                s.token(_token(tokens, index, attempt), 1.0)
                responses += s.take()
            begin = max(begin, min(end, len(tokens)))
            if attempt <= len(points) and not s.ended:
                for index in range(begin + 1, min(begin + 1 + lost, len(tokens))):
                    s.token(_token(tokens, index, attempt), 1.0)  # position `begin` is lost
                s.notice(Interrupted("r", attempt + 1, "d0 was lost"), 2.0)
                if attempt > 1:  # later attempts begin after a while
                    s.tick(2.0 + 60.0)
                (resume,) = s.tell()
                assert isinstance(resume, Resume)
                assert [list(state.outputs) for state in resume.samples] == [tokens[:begin]]
        assert s.state is State.DONE
        return responses

    whole, cut = play([]), play(sorted(cuts))
    assert texts(cut) == texts(whole)
    assert cut[-2].completion == whole[-2].completion
    assert cut[-1].summary.usage == whole[-1].summary.usage


def _token(tokens: list[int], index: int, attempt: int) -> TokenOut:
    return token(index, value=tokens[index], attempt=attempt, finish=index == len(tokens) - 1)

"""What is asked of the served demo model, and how answers are counted."""

from collections import Counter

import numpy as np
import pytest

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client.results import Result, Sample
from triptych.tools.demo_vlm.examples import swaps
from triptych.tools.demo_vlm.judge import Verdict, held_out, interval, judged, summary, table
from triptych.tools.demo_vlm.questions import Question, Skill

DIGITS, LABELS = np.full((10, 28, 28), 255, np.uint8), np.arange(10)
BLANK = np.zeros((1, 1, 3), np.uint8)


def test_every_skill_is_asked_as_often_as_wanted() -> None:
    pairs = held_out(3, DIGITS, LABELS)
    assert Counter(question.skill for _, question in pairs) == dict.fromkeys(Skill, 3)
    assert {q.answer for _, q in pairs if q.skill is Skill.DIGIT} <= {"8", "9"}  # those that no training has seen


def test_swapped_images_share_words_and_differ_in_answers() -> None:
    def about(text: str, answer: str) -> tuple[np.ndarray, Question]:
        return BLANK, Question(Skill.COUNT, text, answer)

    pairs = [about("a", "1"), about("b", "1"), about("a", "1"), about("a", "2"), about("b", "3")]
    assert [(q.text, q.answer) for _, q in swaps(pairs)] == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "3")]


@pytest.mark.parametrize(
    ("text", "finish", "right"),
    [("red", "stop", True), (" red", "stop", True), ("red", "length", False), ("red star", "stop", False)],
)
def test_right_is_the_answer_and_nothing_else(text: str, finish: str, right: bool) -> None:
    result = Result(samples=[Sample(text=text, finish_reason=finish)], timings=pb.Timings(encode=0.5, kv_bytes=3))
    verdict = judged(Question(Skill.COLOUR, "?", "red"), result)
    assert verdict == Verdict(Skill.COLOUR, right, 0.5, 0, 3)


def test_the_interval_is_wilsons() -> None:
    low, high = interval(90, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert interval(10, 10)[1] <= 1.0


def test_a_report_counts_by_skill() -> None:
    verdicts = [Verdict(Skill.COLOUR, right, 0.1, 10, 20) for right in (True, True, False)]
    report = summary(verdicts, [Verdict(Skill.DIGIT, True, 0.0, 0, 5)])
    assert report["accuracy"]["colour"]["right"] == 2 and report["accuracy"]["colour"]["asked"] == 3
    assert report["accuracy"]["swapped image"]["asked"] == 1 and "shape" not in report["accuracy"]
    assert (report["encoded"], report["embedding_bytes"], report["kv_bytes"]) == (3, 30, 65)
    assert "66.7%" in table(report)

"""Prompt log-probabilities equal those of a dense forward pass, over chunks and beside other rows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.engine import oracle
from tests.runtime.engine.driver import Driver, compiled, sequence
from triptych.runtime.core.errors import EngineError

pytestmark = pytest.mark.limit(300)

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 238, 46, 26]


def test_scores_over_chunks_beside_a_decode_row(driver: Driver) -> None:
    expected = [oracle.log_softmax(row) for row in oracle.logits_of(PROMPT)]
    other, scored = sequence(3, [5, 6]), sequence(0, list(PROMPT))
    driver.generate([other], 1)
    first = driver.run(scored.row(4, draws=False, score=tuple(PROMPT[1:5]), score_top=3))
    rest = driver.run(other.carried_row(), scored.row(7, score=tuple(PROMPT[5:]), score_top=3), seats=(scored.seat(),))
    assert [row.sequence for row in rest.rows] == [3, 0]
    assert rest.rows[0].scores == () and len(rest.rows[0].drawn) == 1
    scores = (*first.rows[0].scores, *rest.rows[1].scores)
    assert len(scores) == len(PROMPT) - 1
    for at, logprobs in enumerate(scores):
        assert logprobs.sampled == pytest.approx(expected[at][PROMPT[at + 1]], abs=2e-5)
        best = np.argsort(-expected[at])[:3]
        assert [token for token, _ in logprobs.top] == best.tolist()
        assert [value for _, value in logprobs.top] == pytest.approx(expected[at][best].tolist(), abs=2e-5)


def test_a_scored_row_of_one_token(driver: Driver) -> None:
    expected = oracle.log_softmax(oracle.logits_of([9])[0])[8]
    seq = sequence(1, [9, 8])
    (row,) = driver.run(seq.row(1, draws=False, score=(8,))).rows
    assert row.scores[0].sampled == pytest.approx(expected, abs=2e-5) and row.scores[0].top == ()


@pytest.mark.slow
def test_an_engine_without_scoring_says_so() -> None:
    driver = Driver(compiled(prompt_logprobs=False))
    seq = sequence(0, [9, 8])
    with pytest.raises(EngineError, match="without prompt_logprobs"):
        driver.run(seq.row(1, draws=False, score=(8,)))

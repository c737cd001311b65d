"""An instance that guesses draws on the device what one that does not draws: same engine, same requests, fewer steps."""

from __future__ import annotations

import pytest

from tests.runtime.engine.driver import compiled
from tests.runtime.engine.guessing import BATCHES, PROMPT, compared
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.speculation import Speculation
from triptych.tools.bench.speculation import compare

pytestmark = pytest.mark.limit(300)  # the first test compiles an engine

GUESSING = Speculation(3, longest=3, shortest=1)
SHAPES = tuple(ExtendShape(rows, tokens, 16) for rows, tokens in ((4, 0), (16, 0), (4, 16)))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return compiled(buckets=Buckets(SHAPES, draws=(16,)), speculative_tokens=GUESSING.tokens, prompt_logprobs=False)


@pytest.mark.parametrize(
    ("name", "num_pages"), [*((name, 80) for name in BATCHES), ("greedy together", 18), ("samples", 18)]
)
def test_tokens_are_those_of_plain_decoding(engine: Engine, name: str, num_pages: int) -> None:
    plain_steps, steps, core = compared(engine, GUESSING, BATCHES[name], num_pages)
    counts = core.speculated
    if name.startswith("greedy") and num_pages == 80:
        assert counts.accepted > 0 and steps < plain_steps


def test_the_benchmark_of_guesses_counts_the_steps_that_they_save(engine: Engine) -> None:
    """Here, because the engine is."""
    found = compare(engine, "repeats", PROMPT, 30, GUESSING)
    assert found.differs_at is None
    assert found.plain.tokens == found.plain.steps == found.guessed.tokens == 29 and found.plain.drafted == 0
    assert 0 < found.guessed.accepted <= 29 - found.guessed.steps

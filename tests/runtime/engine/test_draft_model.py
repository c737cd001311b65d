"""A draft model guesses on the device: the tokens are those without it, whatever its weights, and with the target's own weights nearly all guesses are right."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.runtime.engine.driver import Driver, sequence, toy_config
from tests.runtime.engine.guessing import BATCHES, PROMPT, compared, serve
from tests.runtime.engine.oracle import TOY, toy
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import load_decoder
from triptych.runtime.core.errors import ConfigError, EngineError
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.buckets import Buckets, ExtendShape, PlanError
from triptych.runtime.engine.draft_stage import DraftStage
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.plan import Draft, Draw, Row
from triptych.runtime.instance.speculation import Speculation
from triptych.tools.bench.speculation import compare

pytestmark = pytest.mark.limit(300)  # the first test compiles an engine

GUESSING = Speculation(3, model="another set of weights")
SHAPES = tuple(ExtendShape(rows, tokens, 16) for rows, tokens in ((4, 0), (16, 0), (4, 16)))


@pytest.fixture(scope="module")
def engine() -> Engine:
    loaded = toy()
    config = toy_config(
        buckets=Buckets(SHAPES, draws=(16,)), speculative_tokens=3, draft_model=True, prompt_logprobs=False
    )
    engine = Engine(config, loaded, loaded.rules.mesh, draft=DraftStage(config, loaded))
    engine.compile()
    return engine


def weights(kind: str) -> tuple[jax.Array, ...]:
    """Of a draft model: the target's own, others of the same shapes, or something between."""
    own = toy().params
    if kind == "own":
        return own
    other = load_decoder(TOY, DummySource(TOY, seed=9), toy().rules.mesh, "float32").params
    return (
        other
        if kind == "other"
        else tuple(0.87 * mine + 0.13 * theirs for mine, theirs in zip(own, other, strict=True))
    )


@pytest.mark.parametrize(
    ("kind", "name", "num_pages"),
    [
        *(("own", name, 80) for name in BATCHES),
        ("own", "greedy together", 18),
        ("own", "samples", 18),
        *(("near", name, 80) for name in ("greedy together", "seeded", "samples", "stop")),
        ("other", "seeded", 80),
        ("other", "greedy together", 18),
    ],
)
def test_tokens_are_those_of_plain_decoding(engine: Engine, kind: str, name: str, num_pages: int) -> None:
    assert engine.draft is not None
    engine.rebuild()
    engine.draft.params = weights(kind)
    plain_steps, steps, core = compared(engine, GUESSING, BATCHES[name], num_pages)
    counts = core.speculated
    if kind == "near":
        assert 0 < counts.accepted < counts.drafted
    if kind == "own" and num_pages == 80 and name in ("greedy", "greedy together", "seeded", "samples"):
        assert counts.accepted > 0.95 * counts.drafted
        assert steps < 0.4 * plain_steps, "at temperature too: it draws with the target's noise"


def test_the_benchmark_counts_the_steps_that_a_draft_model_saves(engine: Engine) -> None:
    """Here, because the engine is."""
    assert engine.draft is not None
    engine.draft.params = weights("own")
    found = compare(engine, "own", PROMPT, 45, GUESSING)
    assert found.differs_at is None and found.plain.steps == 44 and found.guessed.steps <= 14


def test_a_lost_engine_begins_again_with_an_empty_draft_pool(engine: Engine) -> None:
    assert engine.draft is not None
    engine.rebuild()
    serve(engine, GUESSING, BATCHES["greedy"])
    assert any(np.asarray(array).any() for array in jax.tree.leaves(engine.draft.pools))
    engine.rebuild()
    assert not any(np.asarray(array).any() for array in jax.tree.leaves(engine.draft.pools))


@pytest.mark.parametrize(
    ("draft", "wrong"),
    [
        (Draft(0, (1, 2), 0, 0, (1,), 4), "expected 1 to 3"),
        (Draft(0, (1, 2), 3, 3, (1,), 2), "1 pages cannot hold 5 tokens"),
        (Draft(0, (1, 2), 0, 0, (80,), 2), "the pool has 80"),
    ],
)
def test_a_draft_that_was_not_compiled_for_is_refused(engine: Engine, draft: Draft, wrong: str) -> None:
    engine.rebuild()
    driver, seq = Driver(engine), sequence(0, [5, 6, 7])
    row = Row(0, (5,), 0, 0, seq.pages, draws=(Draw(0, 1),))
    with pytest.raises(PlanError, match=wrong):
        driver.run(row, seats=(seq.seat(),), drafts=(draft,))
    with pytest.raises(EngineError, match="cannot run plans"):
        driver.run(row)
    engine.rebuild()


def test_an_engine_says_that_it_has_no_draft_model() -> None:
    loaded, plain = toy(), toy_config()
    with pytest.raises(ConfigError, match="needs a config with draft_model"):
        DraftStage(plain, loaded)
    config = toy_config(buckets=Buckets(SHAPES, draws=(16,)), speculative_tokens=3, draft_model=True)
    with pytest.raises(ValueError, match="draft_model is True"):
        Engine(config, loaded, loaded.rules.mesh)
    with pytest.raises(ConfigError, match="guesses at least one token, for models of text"):
        toy_config(draft_model=True)


def test_a_sample_that_biases_its_draws_is_guessed_for_by_its_filters(engine: Engine) -> None:
    """The bias itself is not known to the draft model: it is wrong there, and nothing else."""
    assert engine.draft is not None
    engine.draft.params = weights("own")
    params = SamplingParams(temperature=0.0, logit_bias=((7, 30.0),), max_tokens=20, ignore_eos=True)
    batch = [replace(BATCHES["greedy"][0], sampling=params)]
    engine.rebuild()
    _, _, core = compared(engine, GUESSING, batch)
    assert core.speculated.drafted > core.speculated.accepted

"""Programs whose last layer is for the last tokens of rows alone: the same draws and the same pages as with the whole layer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from tests.runtime.engine.driver import Driver, sequence, toy_config
from triptych.models.config import PRESETS
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.plan import Draw, StepResult
from triptych.sharding.mesh import make_mesh

PROMPTS = ([11, 200, 3, 77, 5], [9, 8, 7, 6, 5, 4, 3, 2, 1, 250, 251], [40, 41, 42])
TOP = SamplingParams(temperature=0.0, logprobs=3)
WINDOWED = replace(PRESETS["toy"], name="windowed", layer_windows=(None, 6))


@cache
def loaded(tp: int, windowed: bool) -> LoadedDecoder:
    config = WINDOWED if windowed else PRESETS["toy"]
    return load_decoder(config, DummySource(config, seed=3), make_mesh(jax.devices()[:tp], tp), "float32")


def engine(tp: int, windowed: bool, last_only: bool) -> Engine:
    shapes = (ExtendShape(4, 0, 16), ExtendShape(4, 16, 16, last_only=last_only))
    config = toy_config(buckets=Buckets(shapes, draws=(4,)), prompt_logprobs=not last_only)
    made = Engine(config, loaded(tp, windowed), loaded(tp, windowed).rules.mesh)
    made.compile()
    return made


def a_few_steps(made: Engine) -> tuple[list[StepResult], list[np.ndarray]]:
    """A prompt; a row that decodes beside two prompts, of which one is only a chunk and one has two samples; and a row that decodes alone."""
    driver = Driver(made)
    a, b, c = (sequence(number, prompt.copy(), TOP) for number, prompt in enumerate(PROMPTS))
    results = [driver.run(a.row(5), seats=(a.seat(),))]
    a.outputs.append(results[0].rows[0].drawn[0].token)
    third = c.row(3)
    third = third._replace(draws=(*third.draws, Draw(3, 3)))
    rows = (b.row(7, draws=False), a.row(1), third)
    results.append(driver.run(*rows, seats=(b.seat(), c.seat(), replace(c.seat(), slot=3, sample=1))))
    results.append(driver.run(b.row(4), a.carried_row()))
    return results, [np.asarray(pages)[1:] for layer in made.pools for pages in layer]


@pytest.mark.parametrize(("tp", "windowed"), [(1, False), (2, False), (1, True)])
def test_draws_and_pages_are_those_of_the_whole_layer(tp: int, windowed: bool) -> None:
    expected, whole = a_few_steps(engine(tp, windowed, last_only=False))
    found, pages = a_few_steps(engine(tp, windowed, last_only=True))
    for mine, theirs in zip(found, expected, strict=True):
        for row, other in zip(mine.rows, theirs.rows, strict=True):
            assert [drawn.token for drawn in row.drawn] == [drawn.token for drawn in other.drawn]
            for drawn, wanted in zip(row.drawn, other.drawn, strict=True):
                assert drawn.logprobs is not None and wanted.logprobs is not None
                assert drawn.logprobs.sampled == pytest.approx(wanted.logprobs.sampled, abs=1e-5)
    for mine, theirs in zip(pages, whole, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)

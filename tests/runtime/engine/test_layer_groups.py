"""Prompts computed layer group by layer group: the same numbers, few programs, and KV that can leave before the step is done."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from tests.runtime.engine.driver import PAGE, Driver, sequence, toy_config
from triptych.models.config import PRESETS
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.results import PartialStep
from triptych.runtime.instance.plan import Export
from triptych.runtime.transfer.layer_groups import cut_layers
from triptych.sharding.mesh import make_mesh

pytestmark = pytest.mark.limit(300)

LAYERS = 5
# The third layer is of another kind: it sees a window.
DEEP = replace(PRESETS["toy"], name="deep", num_layers=LAYERS, layer_windows=(None, None, 6, None, None))
PREFILL = Buckets((ExtendShape(4, 16, 16),), draws=(4,))
PROMPTS = ([11, 200, 3, 77, 5], [9, 8, 7, 6, 5, 4, 3, 2, 1, 250, 251])


@cache
def loaded(tp: int) -> LoadedDecoder:
    return load_decoder(DEEP, DummySource(DEEP, seed=3), make_mesh(jax.devices()[:tp], tp), "float32")


@cache
def engine(layers: int, tp: int = 1, **changes: Any) -> Engine:
    """One that only prefills, `layers` layers a group."""
    fields = {"buckets": PREFILL, "roles": frozenset({Role.PREFILL}), "prompt_logprobs": True} | changes
    config = toy_config(layer_groups=cut_layers(LAYERS, layers), **fields)
    made = Engine(config, loaded(tp), loaded(tp).rules.mesh)
    made.compile()
    return made


def two_prompts(at: Engine, **plan: Any) -> tuple[list[list[int]], Any, list[np.ndarray]]:
    """Tokens, scores and pools after both prompts in a step, the second one in two chunks."""
    at.rebuild()
    driver = Driver(at)
    a, b = sequence(0, list(PROMPTS[0])), sequence(1, list(PROMPTS[1]))
    driver.run(b.row(7, draws=False), **plan)
    rows = (a.row(5, score=tuple(PROMPTS[0][1:]), score_top=2), b.row(4))
    result = driver.run(*rows, seats=(a.seat(), b.seat()), **plan)
    tokens = [[drawn.token for drawn in row.drawn] for row in result.rows]
    return tokens, result.rows[0].scores, [np.asarray(half)[1:] for pair in at.pools for half in pair]


@pytest.mark.parametrize(
    ("layers", "tp"), [(1, 1), (2, 1), *(pytest.param(*cut, marks=pytest.mark.slow) for cut in ((3, 2), (4, 4)))]
)
def test_every_cut_gives_the_numbers_of_the_whole(layers: int, tp: int) -> None:
    expected, scores, whole = two_prompts(engine(LAYERS, tp))
    tokens, again, pools = two_prompts(engine(layers, tp))
    assert tokens == expected
    assert [s.sampled for s in again] == pytest.approx([s.sampled for s in scores], abs=1e-5)
    for mine, theirs in zip(pools, whole, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_groups_of_the_same_layers_share_a_program() -> None:
    by_one, by_two = engine(1)._programs, engine(2)._programs
    made = [[key for key in programs._compiled if key[0] == "layers"] for programs in (by_one, by_two)]
    # Alone, each of four layers is like the first, and the third is not; in twos (0 1) (2 3) (4) differ all.
    assert [sorted(key[2] for key in keys) for keys in made] == [[0, 2], [0, 1, 2]]
    assert ("extend", PREFILL.extend[0]) not in by_one._compiled
    assert ("extend", PREFILL.extend[0]) in engine(LAYERS)._programs._compiled


def test_only_steps_that_compute_prompts_for_others_are_cut() -> None:
    config = toy_config(layer_groups=cut_layers(LAYERS, 2))
    assert config.by_layer_groups(ExtendShape(4, 16, 16)) and not config.by_layer_groups(ExtendShape(4, 0, 16))
    decodes = replace(config, roles=frozenset({Role.DECODE}))
    assert not decodes.by_layer_groups(ExtendShape(4, 16, 16))


def exporting(driver: Driver) -> PartialStep:
    seq = sequence(0, list(PROMPTS[0]))
    step = driver.engine.dispatch(
        driver.plan(seq.row(5), seats=(seq.seat(),), exports=(Export(7, 0, seq.pages[: -(-5 // PAGE)], True),))
    )
    assert isinstance(step, PartialStep)
    return step


def test_what_is_exported_can_be_read_group_by_group_while_the_step_goes_on() -> None:
    expected, _, whole = two_prompts(engine(LAYERS))
    at = engine(2)
    at.rebuild()
    driver = Driver(at)
    page = sequence(0, []).pages[0] - 1  # of pages without the null page
    with no_compilation():
        step: Any = exporting(driver)
        for group, (start, stop) in enumerate(at.config.layer_groups):
            assert group == 0 or step.dispatched == group
            if group:
                step = step.advance()
            for layer in range(start, stop):
                keys = np.asarray(at.pools[layer][0])[1:][page]
                np.testing.assert_allclose(keys, whole[2 * layer][page], atol=1e-5)
        assert not isinstance(step, PartialStep)
        result = at.collect(step)
    assert result.rows[0].drawn[0].token == expected[0][0]


def test_a_step_may_be_collected_before_it_is_dispatched_to_its_end() -> None:
    expected, _, _ = two_prompts(engine(LAYERS))
    at = engine(1)
    at.rebuild()
    assert at.collect(exporting(Driver(at))).rows[0].drawn[0].token == expected[0][0]


def test_a_group_that_fails_breaks_the_engine_until_it_is_rebuilt() -> None:
    at = engine(2)
    at.rebuild()
    step = exporting(Driver(at))
    at.pools[2][0].delete()
    with pytest.raises(EngineError, match="KV pool is lost"):
        step.advance()
    assert at.broken
    with pytest.raises(EngineError, match="rebuild"):
        Driver(at).run()
    at.rebuild()
    assert at.collect(exporting(Driver(at))).rows[0].drawn

"""Engines over quantised weights give the greedy tokens of a dense forward pass over the dequantised ones, layer groups and all."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.dequantised import dequantised
from tests.runtime.engine.driver import Driver, sequence, toy_config
from tests.runtime.engine.oracle import LONGEST, TOY, forward
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.engine import Engine
from triptych.sharding.mesh import make_mesh

pytestmark = pytest.mark.limit(300)

PROMPT = [11, 200, 3, 77, 5, 8, 13]


@cache
def loaded(weights: str, tp: int = 1) -> LoadedDecoder:
    return load_decoder(TOY, DummySource(TOY, seed=3), make_mesh(jax.devices()[:tp], tp), "float32", weights)


def greedy(weights: str, count: int) -> list[int]:
    """The next tokens after PROMPT, by dense attention over the dequantised model."""
    model = dequantised(loaded(weights))

    @jax.jit
    def run(params, tokens):
        decoder = model.merge(params)
        return forward(decoder, decoder.embed(tokens), jnp.arange(LONGEST))

    tokens = list(PROMPT)
    for _ in range(count):
        padded = np.zeros(LONGEST, np.int32)
        padded[: len(tokens)] = tokens
        tokens.append(int(np.asarray(run(model.params, padded))[len(tokens) - 1].argmax()))
    return tokens[len(PROMPT) :]


def small_engine(
    weights: str, tp: int = 1, roles: frozenset[Role] = frozenset(Role) - {Role.ENCODE}, **fields
) -> Engine:
    """One with a single extend program for one sequence."""
    config = toy_config(
        buckets=Buckets((ExtendShape(1, 16, 16),), draws=(1,)),
        max_num_seqs=1,
        max_prefill_rows=1,
        prompt_logprobs=False,
        roles=roles,
        **fields,
    )
    engine = Engine(config, loaded(weights, tp), loaded(weights, tp).rules.mesh)
    engine.compile()
    return engine


@pytest.mark.parametrize(
    ("weights", "tp"),
    [("int4-32", 1), *(pytest.param(*more, marks=pytest.mark.slow) for more in (("int8", 2), ("fp8-layers", 1)))],
)
def test_greedy_tokens_are_those_of_the_dequantised_model(weights: str, tp: int) -> None:
    seq = sequence(0, list(PROMPT))
    assert Driver(small_engine(weights, tp)).generate([seq], 6) == [greedy(weights, 6)]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4-32"])
def test_layer_groups_find_codes_and_scales(weights: str) -> None:
    engine = small_engine(weights, roles=frozenset({Role.PREFILL}), layer_groups=((0, 1), (1, 2)))
    assert ("layers", ExtendShape(1, 16, 16), 0) in engine._programs._compiled
    seq = sequence(0, list(PROMPT))
    assert Driver(engine).tokens(seq.row(len(PROMPT)), seats=(seq.seat(),)) == [greedy(weights, 1)]

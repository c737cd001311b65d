"""Embeddings of several parts, each the input of an inner layer (eP-ALM): served as a plain forward pass with the same replacements."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.engine import media_rig as rig
from tests.runtime.engine import oracle
from tests.runtime.engine.driver import Driver, sequence
from tests.runtime.engine.toy_encoder import HIDDEN
from triptych.runtime.core.instance import Role

INJECTIONS = ((1, 1),)  # the toy decoder has two layers; part 0 is not used
PROMPT = [11, 200, 259, 77, 5, 259, 42]
PLACES = {2: (3,), 5: (7,)}
ROWS = {at: np.random.default_rng(at).standard_normal((1, 2 * HIDDEN)).astype(np.float32) for at in PLACES}


def logits_of(tokens: list[int], at_layer: int) -> np.ndarray:
    """[vocab] after the last token, with part 1 of the embeddings as the input of `at_layer` at their places."""
    padded = np.zeros(oracle.LONGEST, np.int32)
    padded[: len(tokens)] = tokens

    def run(params, tokens):  # type: ignore[no-untyped-def]
        def into(layer: int, x: jax.Array) -> jax.Array:
            for at, row in ROWS.items():
                x = x.at[at].set(row[0, HIDDEN:]) if layer == at_layer else x
            return x

        decoder = oracle.toy().merge(params)
        return oracle.forward(decoder, decoder.embed(tokens), jnp.arange(oracle.LONGEST), into)

    return np.asarray(jax.jit(run)(oracle.toy().params, padded))[len(tokens) - 1]


@pytest.mark.parametrize(("tp", "layers"), [(1, 1), (2, 2)])
def test_what_is_injected_at_an_inner_layer_is_the_plain_forward(tp: int, layers: int) -> None:
    """Also where the layer is in a program of its own."""
    roles = frozenset({Role.PREFILL, Role.DECODE})
    engine = rig.media_engine(tp, roles, layers, hidden=2 * HIDDEN, injections=INJECTIONS)
    driver, stage = Driver(engine), engine.media
    assert stage is not None
    for at, pages in PLACES.items():
        rig.fill(stage, pages, ROWS[at])
    items = {at: (1, pages) for at, pages in PLACES.items()}
    seq = sequence(0, list(PROMPT))
    driver.tokens(seq.row(3, embedded=rig.runs(0, 3, items)), seats=(seq.seat(),))
    ((first,),) = driver.tokens(seq.row(4, draws=True, embedded=rig.runs(3, 4, items)))
    seq.outputs.append(first)
    ((second,),) = driver.tokens(seq.carried_row())
    inner = logits_of(PROMPT, 1)
    assert first == inner.argmax() and second == logits_of([*PROMPT, first], 1).argmax()
    assert np.abs(inner - logits_of(PROMPT, 0)).max() > 1e-3, "the layer makes no difference, so the test shows nothing"

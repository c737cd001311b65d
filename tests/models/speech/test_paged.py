"""Rows of different windows in one step hear their own window only, and say what each would say alone over dense caches."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.speech.paged import PAGE_SIZE, PagedWhisper
from tests.models.speech.toy import golden, toy_config, toy_decoder
from triptych.models.speech.decoder import cross_kv, extend_layers
from triptych.models.speech.kv import whisper_kv_groups
from triptych.models.speech.transcribe import dense_caches, dense_extend


def windows(count: int) -> np.ndarray:
    """States of several windows: the golden's, and others that are unlike it."""
    others = np.random.default_rng(1).standard_normal((count - 1, *golden()["states"].shape))
    return np.concatenate((golden()["states"][None], others)).astype(np.float32)


def dense_logits(states: np.ndarray, tokens: list[int]) -> np.ndarray:
    """All tokens of one row at once, over dense caches."""
    loaded = toy_decoder()

    @jax.jit
    def program(params, states, tokens):
        decoder = loaded.merge(params)
        start = jnp.zeros((), jnp.int32)
        hidden, _ = dense_extend(decoder, dense_caches(decoder), cross_kv(decoder, states), tokens, start)
        return decoder.head(hidden)

    return np.asarray(program(loaded.params, states, np.asarray(tokens, np.int32)))


def test_the_dense_reference_is_the_golden() -> None:
    np.testing.assert_allclose(
        dense_logits(golden()["states"], golden()["prompt"].tolist()), golden()["logits"], atol=3e-4
    )


@pytest.mark.slow
def test_mixed_steps_of_three_windows_are_what_each_says_alone() -> None:
    paged, states = PagedWhisper(toy_decoder(), seed=3), windows(3)
    first, second, third = (paged.hear(window) for window in states)
    said: dict[int, list[np.ndarray]] = {id(row): [] for row in (first, second, third)}

    def step(decode, ragged) -> None:
        for (row, _), logits in zip([*decode, *ragged], paged.step(decode, ragged), strict=True):
            said[id(row)].append(logits)

    step([], [(first, [71, 3, 9]), (second, [71])])
    step([(first, 5), (second, 8)], [(third, [71, 1, 2, 3, 4])])
    step([(third, 6), (first, 7)], [(second, [2, 2, 40])])
    step([(second, 11), (third, 12)], [])
    for row, window in zip((first, second, third), states, strict=True):
        np.testing.assert_allclose(np.concatenate(said[id(row)]), dense_logits(window, row.tokens), atol=2e-4)


def test_what_is_said_depends_on_the_window() -> None:
    states = windows(2)
    apart = dense_logits(states[0], [71, 3]) - dense_logits(states[1], [71, 3])
    assert np.abs(apart).max() > 0.1


def test_layer_ranges_with_hidden_states_in_and_out_are_the_whole_model() -> None:
    paged = PagedWhisper(toy_decoder())
    row = paged.hear(golden()["states"])
    batch, cross, _ = paged._batch([], [(row, [71, 3, 9])])
    decoder = toy_decoder().merge(toy_decoder().params)
    x = decoder.embed(batch.tokens, batch.positions)
    whole, pools = extend_layers(decoder, x, paged.pools, paged.cross_pools, batch, cross)
    x, first = extend_layers(decoder, x, paged.pools[:1], paged.cross_pools[:1], batch, cross, range(1))
    x, second = extend_layers(decoder, x, paged.pools[1:], paged.cross_pools[1:], batch, cross, range(1, 2))
    np.testing.assert_allclose(x[:4], whole[:4], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, (*first, *second), pools)
    with pytest.raises(ValueError, match="1 layers need as many pools, got 1 and 2"):
        extend_layers(decoder, x, paged.pools[:1], paged.cross_pools, batch, cross, range(1))


def test_cross_entries_of_several_windows_and_of_layer_ranges_are_those_of_each() -> None:
    decoder, states = toy_decoder().merge(toy_decoder().params), windows(2)
    together = cross_kv(decoder, jnp.asarray(states.reshape(-1, states.shape[-1])))
    apart = [cross_kv(decoder, jnp.asarray(window), layers) for window in states for layers in (range(1), range(1, 2))]
    for layer in range(2):
        for part in range(2):
            expected = np.concatenate([apart[layer][0][part], apart[2 + layer][0][part]])
            np.testing.assert_allclose(together[layer][part], expected, atol=1e-5)


def test_the_two_groups_have_the_models_geometry() -> None:
    own, cross = whisper_kv_groups(toy_config(), "bfloat16")
    assert (own.name, own.kind, own.length) == ("self", "full", None)
    assert (cross.name, cross.kind, cross.length) == ("cross", "cross", 50)
    assert own.bytes_per_token == cross.bytes_per_token == 2 * 2 * 24 * 2
    assert own.layers == cross.layers == (0, 1)
    pools = toy_decoder().structure.allocate_pools(replace(cross, dtype="float32"), 3, PAGE_SIZE)
    assert [pool.shape for pool in jax.tree.leaves(pools)] == [(3, PAGE_SIZE, 3, 8)] * 4
    with pytest.raises(ValueError, match="'int8' is unknown"):
        whisper_kv_groups(toy_config(), "int8")

"""The noise is Threefry, chained as jax.random chains it, and has the distribution that sampling needs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.engine import oracle
from triptych.runtime.engine import noise


def words(*values: int) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.uint32))


def test_threefry_gives_the_published_vectors() -> None:
    # Known answers of Random123 for threefry2x32 with 20 rounds.
    cases = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, expected in cases:
        x, y = noise.threefry((words(key[0]), words(key[1])), words(counter[0]), words(counter[1]))
        assert (int(x[0]), int(y[0])) == expected


def test_keys_chain_as_fold_in_of_jax() -> None:
    key = jax.random.wrap_key_data(words(0x12345678, 0x9ABCDEF0), impl="threefry2x32")
    for word in (7, 31337, noise.PURPOSE_SAMPLE):
        key = jax.random.fold_in(key, word)
    seed = noise.split_seed(0x123456789ABCDEF0)
    high, low = noise.draw_key(words(seed[0]), words(seed[1]), jnp.asarray([7]), jnp.asarray([31337]))
    assert [int(high[0]), int(low[0])] == jax.random.key_data(key).tolist()


def test_noise_equals_the_oracle_and_does_not_depend_on_batch_or_vocabulary() -> None:
    rows = [(2**63 + 5, 0, 17), (2**63 + 5, 1, 17), (9, 0, 17), (9, 0, 18)]
    seeds = [noise.split_seed(seed) for seed, _, _ in rows]

    def batch(which: list[int], vocab: int) -> np.ndarray:
        key = noise.draw_key(
            words(*(seeds[i][0] for i in which)),
            words(*(seeds[i][1] for i in which)),
            jnp.asarray([rows[i][1] for i in which]),
            jnp.asarray([rows[i][2] for i in which]),
        )
        return np.asarray(noise.gumbel(key, vocab))

    together = batch([0, 1, 2, 3], 301)
    for i, (seed, sample, position) in enumerate(rows):
        np.testing.assert_allclose(together[i], oracle.gumbel(seed, sample, position, 301), rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(batch([i], 301)[0], together[i])
        np.testing.assert_array_equal(batch([i], 100)[0], together[i, :100])
    assert len({row.tobytes() for row in together}) == len(rows)


def test_argmax_of_noisy_logits_is_a_softmax_draw_down_to_rare_tokens() -> None:
    draws = 200_000
    probability = np.asarray([0.6, 0.3, 0.09, 0.0099, 0.0001])
    key = noise.draw_key(
        jnp.zeros(draws, jnp.uint32), jnp.full(draws, 3, jnp.uint32), jnp.zeros(draws, jnp.int32), jnp.arange(draws)
    )
    drawn = np.asarray(jnp.argmax(noise.gumbel(key, 5) + jnp.log(jnp.asarray(probability, jnp.float32)), axis=1))
    counts = np.bincount(drawn, minlength=5)
    # Five standard deviations of a binomial.
    spread = 5 * np.sqrt(draws * probability * (1 - probability))
    assert (np.abs(counts - draws * probability) < spread).all(), counts


def test_noise_is_finite_and_falls_from_end_to_end_of_the_word() -> None:
    values = np.asarray(noise.gumbel_of_bits(words(0, 1, 2**31, 0xFFFFFF00, 0xFFFFFFFF)))
    assert np.isfinite(values).all()
    assert values[0] == pytest.approx(np.log(2.0**33), rel=1e-6)
    assert (np.diff(values) <= 0).all() and values[2] == pytest.approx(-np.log(np.log(2)), rel=1e-5)

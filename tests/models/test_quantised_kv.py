"""Codes and scales of KV entries against numpy, and attention over pages of codes against the oracle of plain pages."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_attention import PAGE_SIZE, oracle, random_batch
from triptych.models.attend import write_kv
from triptych.models.attention import ragged_paged_attention
from triptych.models.config import PRESETS
from triptych.models.kv import CODE_BYTES, kv_groups
from triptych.models.quantised_kv import packed, quantised, unpacked

FORMATS = tuple(CODE_BYTES)
compiled = jax.jit(quantised, static_argnums=1)
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def by_numpy(entries: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales, entry by entry."""
    flat = entries.astype(np.float32).reshape(-1, entries.shape[-1])
    codes, scales = np.zeros(flat.shape, np.dtype(dtype)), np.zeros(len(flat), np.float32)
    for at, entry in enumerate(flat):
        scales[at] = np.abs(entry).max() * np.float32(1 / LARGEST[dtype])
        if scales[at]:
            numbers = entry / scales[at]
            codes[at] = np.rint(numbers) if dtype == "int8" else numbers.clip(-448, 448)
    return codes.reshape(entries.shape), scales.reshape(entries.shape[:-1])


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_codes_and_scales_are_numpys_bit_for_bit(dtype: str, given: str) -> None:
    rng = np.random.default_rng(0)
    entries = rng.standard_normal((7, 3, 16)) * 10.0 ** rng.integers(-6, 6, (7, 3, 1))
    entries[2, 1] = 0
    entries = np.array(jnp.asarray(entries, given))
    codes, scales = compiled(entries, jnp.dtype(dtype))
    wanted_codes, wanted_scales = by_numpy(entries, dtype)
    assert np.asarray(codes).tobytes() == wanted_codes.tobytes()
    assert np.asarray(scales).tobytes() == wanted_scales.tobytes()
    error = np.abs(np.asarray(codes, np.float32) * np.asarray(scales)[..., None] - entries.astype(np.float32))
    # Half a step of 127, or of 2^-3 of the number itself.
    bound = np.asarray(scales)[..., None] * (
        0.5 if dtype == "int8" else np.maximum(np.abs(wanted_codes.astype(np.float32)) / 16, 2.0**-9)
    )
    assert (error <= bound * 1.001).all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_an_entry_depends_on_no_other(dtype: str) -> None:
    entries = np.random.default_rng(1).standard_normal((6, 2, 8)).astype(np.float32)
    together = compiled(entries, jnp.dtype(dtype))
    louder = entries.copy()
    louder[3] *= 1000
    for numbers in (entries[2:3], entries[2:], louder[2:]):
        codes, scales = compiled(numbers, jnp.dtype(dtype))
        assert np.asarray(codes[0]).tobytes() == np.asarray(together[0][2]).tobytes()
        assert np.asarray(scales[0]).tobytes() == np.asarray(together[1][2]).tobytes()


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_finite_stays_so(dtype: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        entry = np.ones((1, 8), np.float32)
        entry[0, 3] = bad
        codes, scales = compiled(entry, jnp.dtype(dtype))
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(np.asarray(codes, np.float32) * np.asarray(scales)[:, None])[0, 3]


@pytest.mark.parametrize("dtype", FORMATS)
def test_words_carry_every_bit(dtype: str) -> None:
    """NaNs of every kind included."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 256, (5, 4, 8), np.uint8).view(np.dtype(dtype))
    scales = rng.integers(0, 2**32, (5, 4), np.uint32).view(np.float32)
    words = jax.jit(packed)(codes, scales)
    assert words.shape == (5, 4, 3) and words.dtype == jnp.uint32
    host = np.asarray(words)
    assert (
        host[..., :2].tobytes() == codes.tobytes() and np.ascontiguousarray(host[..., 2]).tobytes() == scales.tobytes()
    )
    back = jax.jit(unpacked, static_argnums=1)(words, jnp.dtype(dtype))
    assert [np.asarray(array).tobytes() for array in back] == [codes.tobytes(), scales.tobytes()]


@pytest.mark.parametrize("dtype", FORMATS)
def test_new_entries_are_written_where_they_belong(dtype: str) -> None:
    rng = np.random.default_rng(3)
    k, v = (rng.standard_normal((4, 2, 8)).astype(np.float32) for _ in range(2))
    pools = tuple(
        np.zeros((3, PAGE_SIZE, 2, *rest), np.dtype(of))
        for of, *rest in ((dtype, 8), (dtype, 8), ("float32",), ("float32",))
    )
    slots = np.array([5, 11, 4, 3 * PAGE_SIZE], np.int32)  # the last one is beyond the pool
    written = jax.jit(write_kv)(pools, k, v, slots)
    new = (*zip(by_numpy(k, dtype), by_numpy(v, dtype), strict=True),)
    for pool, entries, after in zip(pools, (*new[0], *new[1]), written, strict=True):
        flat = pool.reshape(3 * PAGE_SIZE, *pool.shape[2:])
        flat[slots[:3]] = entries[:3]
        assert np.asarray(after).tobytes() == pool.tobytes()


@pytest.mark.parametrize(
    ("decode_rows", "ragged_rows", "max_q_len", "ragged_tokens", "width", "kv_heads", "group"),
    [(4, 0, 1, 0, 10, 2, 4), (1, 0, 1, 0, 80, 3, 3), (1, 0, 1, 0, 80, 4, 4), (3, 2, 7, 12, 40, 2, 3)],
    ids=["decode", "a lone row of few heads", "a lone row of many heads", "mixed"],
)
@pytest.mark.parametrize(
    ("dtype", "window", "soft_cap"), [("int8", None, None), ("int8", 5, 2.0), ("float8_e4m3fn", 37, None)]
)
def test_attention_over_codes_equals_the_oracle_over_what_they_stand_for(
    decode_rows: int, ragged_rows: int, max_q_len: int, ragged_tokens: int, width: int, kv_heads: int, group: int,
    dtype: str, window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    rng, head_dim, scale = np.random.default_rng((decode_rows, ragged_rows, kv_heads, window or 0)), 8, 0.7
    kv_lens, table, cu_q_lens, pages = random_batch(rng, decode_rows, ragged_rows, max_q_len, ragged_tokens, width)
    q = rng.standard_normal((decode_rows + ragged_tokens, kv_heads * group, head_dim)).astype(np.float32)
    plain = rng.standard_normal((2, pages, PAGE_SIZE, kv_heads, head_dim)) * 10.0 ** rng.uniform(
        -1, 1, (2, pages, PAGE_SIZE, kv_heads, 1)
    )
    codes, scales = by_numpy(plain.astype(np.float32), dtype)
    meant = codes.astype(np.float64) * scales[..., None]
    expected = oracle(q, meant[0], meant[1], kv_lens, table, cu_q_lens, scale, window, soft_cap)
    for row, length in enumerate(kv_lens):
        page, offset = divmod(int(length), PAGE_SIZE)
        if offset:  # someone's leavings
            scales[:, table[row, page], offset:] = np.nan
    scales[:, 0] = np.nan
    out = jax.jit(ragged_paged_attention, static_argnames=("decode_rows", "max_q_len", "scale", "window", "soft_cap"))(
        q, codes[0], codes[1], kv_lens, table, cu_q_lens, decode_rows=decode_rows, max_q_len=max_q_len, scale=scale, window=window,
        soft_cap=soft_cap, scales=(scales[0], scales[1]),
    )  # fmt: skip
    np.testing.assert_allclose(np.asarray(out), expected, atol=1e-4, rtol=1e-5)


def test_a_token_of_a_large_model_takes_little_more_than_half_of_bfloat16() -> None:
    def per_token(preset: str, dtype: str) -> int:
        return kv_groups(PRESETS[preset], dtype)[0].bytes_per_token

    shares: dict[str, Any] = {
        name: per_token(name, "int8") / per_token(name, "bfloat16") for name in ("llama-8b", "smollm2-135m")
    }
    assert shares == {"llama-8b": (128 + 4) / 256, "smollm2-135m": (64 + 4) / 128}
    assert per_token("llama-8b", "float8_e4m3fn") == per_token("llama-8b", "int8")
    assert [kv_groups(PRESETS["toy"], dtype)[0].scales for dtype in ("int8", "bfloat16")] == ["float32", ""]

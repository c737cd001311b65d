"""JAX's TPU kernel, interpreted on the CPU, against the reference: the same numbers from the same batches, and the same pages."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from tests.models.kernels.interpreted import interpret_tpu_kernels
from triptych.models.attend import paged_attend
from triptych.models.errors import UnsupportedModelError
from triptych.models.kernels.tpu import HEADS, PAGES, tpu_attend
from triptych.models.pool_layout import COMBINED
from triptych.models.ragged import Ragged
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules

PAGE_SIZE, WIDTH, SCALE = 4, 6, 0.3


@dataclass(frozen=True)
class Case:
    """Rows as (queries, KV length); those before `decode_rows` are decode rows, and (1, 0) there is padding."""

    rows: tuple[tuple[int, int], ...]
    decode_rows: int
    padding: int = 0
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    window: int | None = None
    tp: int = 1
    dtype: str = "float32"


CASES = {
    "decode with padding between and after": Case(((1, 9), (1, 0), (1, 24), (1, 1), (1, 0)), 5),
    "chunks after prefixes, a fresh prompt, padding": Case(
        ((5, 13), (9, 9), (2, 24), (0, 0)), 0, padding=3, heads=9, kv_heads=3
    ),
    "mixed, with a window": Case(((1, 20), (1, 0), (7, 11), (0, 0)), 2, padding=2, window=5),
    "heads over two devices": Case(((1, 17), (6, 10)), 1, tp=2, dtype="bfloat16"),
    "nothing but padding": Case(((1, 0), (0, 0)), 1, padding=4),
}
# Each takes some seconds to compile.
SLOW = {"mixed, with a window", "nothing but padding"}


def batch_of(case: Case, rng: np.random.Generator) -> Ragged:
    """On shuffled pages; padding tokens are written to the null page."""
    q_lens, kv_lens = (np.array(part, np.int32) for part in zip(*case.rows, strict=True))
    table = rng.permutation(np.arange(1, 1 + len(q_lens) * WIDTH)).reshape(-1, WIDTH).astype(np.int32)
    table[np.arange(WIDTH)[None] >= -(-kv_lens // PAGE_SIZE)[:, None]] = 0
    starts = np.concatenate(([0], q_lens.cumsum())).astype(np.int32)
    write = np.zeros(starts[-1] + case.padding, np.int32)
    for row, (queries, length) in enumerate(case.rows):
        for token in range(queries if length else 0):
            position = length - queries + token
            write[starts[row] + token] = table[row, position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
    tokens = jnp.zeros(len(write), jnp.int32)
    parts = (jnp.asarray(part) for part in (write, kv_lens, table, starts))
    return Ragged(tokens, tokens, *parts, decode_rows=case.decode_rows, max_q_len=int(max(1, q_lens.max())))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in CASES.items()]
)
def test_the_kernel_gives_what_the_reference_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret_tpu_kernels(monkeypatch)
    rng = np.random.default_rng(7)
    batch = batch_of(case, rng)
    pages = 1 + len(case.rows) * WIDTH
    rules = ShardingRules(make_mesh(jax.devices()[: case.tp], case.tp))

    def numbers(*shape: int) -> jax.Array:
        array = jnp.asarray(rng.standard_normal(shape), case.dtype)
        return jax.device_put(array, NamedSharding(rules.mesh, HEADS if len(shape) == 3 else PAGES))

    tokens = len(batch.tokens)
    q, k, v = (numbers(tokens, heads, case.head_dim) for heads in (case.heads, case.kv_heads, case.kv_heads))
    k_pages, v_pages = (numbers(pages, PAGE_SIZE, case.kv_heads, case.head_dim) for _ in range(2))
    local = case.kv_heads // case.tp
    assert COMBINED.slots(local) == local or case.tp == 1, "padding of heads is each device's own"
    combined = jax.device_put(COMBINED.merge(k_pages, v_pages), NamedSharding(rules.mesh, PAGES))

    expected, kv = jax.jit(lambda q, k, v, kv: paged_attend(batch, SCALE, case.tp)(q, k, v, kv, case.window))(
        q, k, v, (k_pages, v_pages)
    )
    attend = jax.jit(lambda q, k, v, kv: tpu_attend(batch, SCALE, rules)(q, k, v, kv, case.window))
    out, (written,) = attend(q, k, v, (combined,))

    tolerance = 2e-6 if case.dtype == "float32" else 0.02
    np.testing.assert_allclose(np.asarray(out, np.float32), np.asarray(expected, np.float32), atol=tolerance)
    own = np.asarray(COMBINED.take((written,), jnp.arange(1, pages), case.kv_heads, case.head_dim))
    np.testing.assert_array_equal(own, np.stack([np.asarray(array)[1:] for array in kv]))


def test_other_numbers_are_refused() -> None:
    rules = ShardingRules(make_mesh(jax.devices()[:1], 1))
    batch = batch_of(Case(((1, 3),), 1), np.random.default_rng(0))
    q = jnp.zeros((1, 2, 8), jnp.float32)
    (pages,) = (jnp.zeros(of.shape, of.dtype) for of in COMBINED.structs(9, PAGE_SIZE, 1, 8, "float16"))
    with pytest.raises(UnsupportedModelError, match="bfloat16 or float32, got float16"):
        tpu_attend(batch, SCALE, rules)(q, q[:, :1], q[:, :1], (pages,), None)

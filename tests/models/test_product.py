"""Products with weights: however a single token is cut into parts, it is the plain product."""

import jax
import numpy as np
import pytest

from triptych.models.product import PARTS, times, times_transposed


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("inputs", "outputs"), [(6 * PARTS, 3 * PARTS), (6 * PARTS + 1, 3 * PARTS + 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_both_layouts_equal_the_plain_product(
    tokens: int, inputs: int, outputs: int, dtype: str, tolerance: float
) -> None:
    rng = np.random.default_rng((tokens, inputs))
    x, weight = (
        jax.numpy.asarray(rng.standard_normal(shape), dtype) for shape in ((tokens, inputs), (inputs, outputs))
    )
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
    for out in (jax.jit(times)(x, weight), jax.jit(times_transposed)(x, weight.T)):
        assert out.shape == expected.shape and out.dtype == x.dtype
        np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tolerance * inputs**0.5)


def test_parts_are_for_one_token_on_cpu_only() -> None:
    def lowered(tokens: int, platform: str) -> str:
        struct = jax.ShapeDtypeStruct
        x, weight = struct((tokens, 8 * PARTS), "float32"), struct((8 * PARTS, PARTS), "float32")
        return jax.jit(times).trace(x, weight).lower(lowering_platforms=(platform,)).as_text()

    assert "batching_dims" in lowered(1, "cpu")
    assert "batching_dims" not in lowered(2, "cpu")
    assert "batching_dims" not in lowered(1, "cuda")

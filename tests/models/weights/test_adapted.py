"""Adapters are added to the right tensors, whole or in parts."""

from collections.abc import Collection

import numpy as np
import pytest

from triptych.models.errors import WeightsError
from triptych.models.weights.adapted import AdaptedSource, LowRank, low_rank_of

RNG = np.random.default_rng(0)


class Tensors:
    """A `TensorSource` of arrays at hand."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def names(self) -> Collection[str]:
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        return self.arrays[name][slices]


def _normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


Q, K, V, O = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo")


def test_a_fused_adapter_is_cut_into_the_tensors_of_its_parameter() -> None:
    stored = {Q: _normal(6, 4), K: _normal(2, 4), V: _normal(2, 4), O: _normal(4, 6)}
    fused, plain = (_normal(4, 3), _normal(3, 10)), (_normal(4, 3), _normal(3, 6))
    trained = {
        "layers.0.attention.qkv.weight.a": fused[0],
        "layers.0.attention.qkv.weight.b": fused[1],
        "layers.0.attention.o.weight.a": plain[0],
        "layers.0.attention.o.weight.b": plain[1],
        "connector.first.weight": _normal(5, 5),
    }
    source = Tensors(stored)
    adapted = AdaptedSource(source, low_rank_of(Tensors(trained), source))
    whole = (slice(None), slice(None))
    added = fused[0] @ fused[1]  # [in, out] of q, k and v side by side
    np.testing.assert_allclose(adapted.read(Q, whole), stored[Q] + added[:, :6].T, rtol=1e-5)
    np.testing.assert_allclose(adapted.read(K, whole), stored[K] + added[:, 6:8].T, rtol=1e-5)
    np.testing.assert_allclose(adapted.read(V, whole), stored[V] + added[:, 8:].T, rtol=1e-5)
    np.testing.assert_allclose(adapted.read(O, whole), stored[O] + plain[0] @ plain[1], rtol=1e-5)
    part = (slice(1, 3), slice(2, 4))
    np.testing.assert_allclose(adapted.read(Q, part), adapted.read(Q, whole)[part], rtol=1e-5)


def test_what_has_no_adapter_is_as_it_was() -> None:
    stored = {"model.norm.weight": np.arange(4, dtype=np.float16)}
    adapted = AdaptedSource(Tensors(stored), {})
    assert adapted.read("model.norm.weight", (slice(1, 3),)).dtype == np.float16
    assert adapted.names() == stored.keys() and adapted.shape("model.norm.weight") == (4,)


@pytest.mark.parametrize("name, shape", [("other", (2, 2)), (Q, (2, 3))])
def test_an_adapter_that_fits_nothing_is_refused(name: str, shape: tuple[int, int]) -> None:
    adapter = LowRank(_normal(shape[0], 1), _normal(1, shape[1]))
    with pytest.raises(WeightsError, match="does not have so"):
        AdaptedSource(Tensors({Q: _normal(2, 2)}), {name: adapter})

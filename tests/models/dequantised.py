"""A quantised model's oracle: the same model with float32 matrices that are exactly what its codes stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from triptych.models.quantised import dequantise
from triptych.models.structure import decoder_structure
from triptych.models.weights.load import LoadedDecoder


def dequantised(model: LoadedDecoder) -> LoadedDecoder:
    named = dict(zip(model.structure.paths, model.params, strict=True))
    plain = decoder_structure(model.config, model.rules, "float32")
    params: list[jax.Array] = []
    for path, struct in zip(plain.paths, plain.abstract, strict=True):
        within = {name.rpartition(".")[2]: array for name, array in named.items() if name.startswith(f"{path}.")}
        weight = dequantise(within) if within else named[path]
        transposed = path.endswith(("qkv.weight", "gate_up.weight"))
        params.append(jnp.asarray(weight.T if transposed else weight, jnp.float32, device=struct.sharding))
        assert params[-1].shape == struct.shape, path
    return LoadedDecoder(plain, tuple(params))

"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on the decoder's projections: W + A @ B, with W frozen.

Adapters are merged into the weights before anything is served, so serving knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

ADAPTED = ("attention.qkv.weight", "attention.o.weight", "ffn.gate_up.weight", "ffn.down.weight")

Adapter = tuple[jax.Array, jax.Array]
"""(A [rows, rank], B [rank, columns]), float32."""


def fresh_adapters(paths: Sequence[str], shapes: Sequence[tuple[int, ...]], rank: int, seed: int) -> dict[str, Adapter]:
    """An adapter that changes nothing yet for each of the decoder's projections (paths as in models/structure.py)."""
    rng = np.random.default_rng(seed)
    made: dict[str, Adapter] = {}
    for path, shape in zip(paths, shapes, strict=True):
        if path.startswith("layers.") and path.endswith(ADAPTED):
            first = rng.normal(0.0, shape[0] ** -0.5, (shape[0], rank)).astype(np.float32)
            made[path] = (jnp.asarray(first), jnp.zeros((rank, shape[1]), jnp.float32))
    return made


def adapted(
    params: Sequence[jax.Array], paths: Sequence[str], adapters: Mapping[str, Adapter]
) -> tuple[jax.Array, ...]:
    """The parameters with their adapters added, each in its own dtype."""
    out: list[jax.Array] = []
    for path, weight in zip(paths, params, strict=True):
        adapter = adapters.get(path)
        out.append(weight if adapter is None else weight + (adapter[0] @ adapter[1]).astype(weight.dtype))
    return tuple(out)

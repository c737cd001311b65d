"""Bytes of weights and pools follow from shapes, whatever the stages of an instance and however its weights are sharded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.runtime.worker.device_bytes import nbytes


def test_every_copy_counts() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("tp",))
    cut = jax.device_put(jnp.zeros((4, 8), jnp.float32), NamedSharding(mesh, PartitionSpec("tp")))
    whole = jax.device_put(jnp.zeros((4, 8), jnp.bfloat16), NamedSharding(mesh, PartitionSpec()))
    assert nbytes(cut) == 4 * 8 * 4
    assert nbytes(whole) == 4 * 8 * 2 * 2
    assert nbytes({"all": (cut, [whole]), "none": ()}) == nbytes(cut) + nbytes(whole)

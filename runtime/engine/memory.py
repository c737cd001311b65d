"""How many KV pages fit: from a share of an accelerator's memory, or from bytes given outright on hosts.

Weights are loaded before this is asked, so they are in what is in use. What the programs need beside weights and pages must fit in the
share that is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from triptych.models.kernels.names import PLATFORMS
from triptych.models.kv import CODE_BYTES
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.engine.decoders import ServedStructure
from triptych.runtime.engine.pools import layout_of

# Host memory has no limit that JAX knows; this holds about 11 thousand tokens of a small model in float32 (SmolLM2-135M: 46 kB each).
DEFAULT_HOST_BYTES = 512 << 20


class MemoryDevice(Protocol):
    """The part of `jax.Device` that matters here."""

    def memory_stats(self) -> Mapping[str, int] | None: ...


def page_bytes(structure: ServedStructure, page_size: int, kv_dtype: str, attention: str = "reference") -> int:
    """Bytes of one page on one device: keys, values and scales of all layers, pads and replicas of heads included, as the kernel `attention` wants them."""
    layout, config = layout_of(structure, attention, kv_dtype), structure.config
    arrays = layout.structs(1, page_size, structure.head_layout.kv_heads_per_device, config.head_dim, kv_dtype)
    return config.num_layers * sum(array.size * array.dtype.itemsize for array in arrays)


def _indexed(structure: ServedStructure, page_size: int, kv_dtype: str, attention: str) -> int:
    """Pages that a kernel can index. Triton's has 32 bits for arrays of up to 4 GiB, which is too few where each byte is a code."""
    if kv_dtype not in CODE_BYTES or PLATFORMS.get(attention) != "gpu":
        return sys.maxsize
    return (2**31 - 1) // (page_size * structure.head_layout.kv_heads_per_device * structure.config.head_dim)


def free_bytes(devices: Sequence[MemoryDevice], fraction: float) -> int:
    """Bytes that KV pages may take on each device: `fraction` of its memory less what is in use, on the fullest device.

    A device that keeps no memory statistics (a host CPU) counts as having DEFAULT_HOST_BYTES, whatever the fraction.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"the share of device memory is {fraction}; expected more than 0 and at most 1")
    return min(_free(device, fraction) for device in devices)


def _free(device: MemoryDevice, fraction: float) -> int:
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return DEFAULT_HOST_BYTES
    return int(stats["bytes_limit"] * fraction) - stats["bytes_in_use"]


def pages_that_fit(
    structure: ServedStructure,
    *,
    page_size: int,
    kv_dtype: str,
    max_model_len: int,
    bytes_per_device: int,
    attention: str = "reference",
    draft: ServedStructure | None = None,
) -> int:
    """Pages of a pool within `bytes_per_device`, the null page included. With a draft model its pool has as many.

    Raises ConfigError when not even one sequence of `max_model_len` tokens fits.
    """
    models = [structure] if draft is None else [structure, draft]
    size = sum(page_bytes(model, page_size, kv_dtype, attention) for model in models)
    pages = min(
        max(0, bytes_per_device) // size, *(_indexed(model, page_size, kv_dtype, attention) for model in models)
    )
    needed = -(-max_model_len // page_size) + 1
    if pages < needed:
        raise ConfigError(
            f"one sequence of max_model_len {max_model_len} needs {needed} KV pages of {size} bytes ({needed * size / 2**20:.0f} MiB a "
            f"device), but {max(0, bytes_per_device) / 2**20:.0f} MiB are free for {pages}: give the cache more memory, lower "
            "max_model_len, or use more devices"
        )
    return pages

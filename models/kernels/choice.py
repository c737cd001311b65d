"""Which attention an engine's programs are built with, and what else of a layer comes with it, and how the pages lie that it reads.

"reference" runs everywhere and is the oracle of the others. "tpu" is for TPUs. The others are for NVIDIA GPUs (`models/kernels/gpu_ops.py`): "gpu-triton" through
Pallas' Triton backend, "gpu-mosaic" through Mosaic for Hopper in 16 bits, and "gpu" takes Triton for decode rows and Mosaic for prompts where it can.
"""

from collections.abc import Callable
from importlib import import_module

from triptych.models.attend import LayerOps, PlainOps, paged_attend
from triptych.models.errors import UnsupportedModelError
from triptych.models.kernels.names import PLATFORMS, kv_problem
from triptych.models.pool_layout import COMBINED, PoolLayout, apart
from triptych.models.ragged import Ragged
from triptych.sharding.rules import ShardingRules


def _reference(batch: Ragged, scale: float, rules: ShardingRules) -> LayerOps:
    return PlainOps(paged_attend(batch, scale, rules.tp), rules, batch.wanted())


# Imported when chosen: Pallas takes half a second, and its GPU backends warn where they are deprecated.
def _tpu(batch: Ragged, scale: float, rules: ShardingRules) -> LayerOps:
    from triptych.models.kernels.tpu import tpu_attend

    return PlainOps(tpu_attend(batch, scale, rules), rules, batch.wanted())


def _gpu(batch: Ragged, scale: float, rules: ShardingRules) -> LayerOps:
    from triptych.models.kernels.gpu_ops import gpu_ops

    return gpu_ops(batch, scale, rules, "triton")


def _gpu_triton(batch: Ragged, scale: float, rules: ShardingRules) -> LayerOps:
    from triptych.models.kernels.gpu_ops import gpu_ops

    return gpu_ops(batch, scale, rules, "triton", ragged="triton")


def _gpu_mosaic(batch: Ragged, scale: float, rules: ShardingRules) -> LayerOps:
    from triptych.models.kernels.gpu_ops import gpu_ops

    return gpu_ops(batch, scale, rules, "mosaic")


KERNELS: dict[str, Callable[[Ragged, float, ShardingRules], LayerOps]] = {
    "reference": _reference,
    "tpu": _tpu,
    "gpu": _gpu,
    "gpu-triton": _gpu_triton,
    "gpu-mosaic": _gpu_mosaic,
}
"""By name, what makes the `LayerOps` of a step from its batch, the scale of scores, and where heads and pages lie."""

_LAYOUTS: dict[str, PoolLayout] = {"tpu": COMBINED}


def ops_with(kernel: str, batch: Ragged, scale: float, rules: ShardingRules) -> LayerOps:
    """The `LayerOps` of a step. `kernel` is one of KERNELS."""
    return KERNELS[kernel](batch, scale, rules)


def prepare(kernel: str) -> None:
    """Import what the kernel's executables need in the process, for those that are loaded and not traced: Mosaic compiles when an executable is loaded, with
    the paths that its import puts into the environment."""
    if PLATFORMS.get(kernel) == "gpu":
        import_module("triptych.models.kernels.gpu_ops")


def pool_layout(kernel: str, dtype: str) -> PoolLayout:
    """How the pages in `dtype` lie that the kernel attends over: keys and values apart, unless it says otherwise.

    Raises UnsupportedModelError if it does not read pages of codes.
    """
    problem = kv_problem(kernel, dtype)
    if problem is not None:
        raise UnsupportedModelError(problem)
    return _LAYOUTS.get(kernel, apart(dtype))

"""Which attention an engine's programs are built with.

"reference" runs everywhere and is the oracle of the others. "gpu" and "gpu-mosaic" are kernels for NVIDIA GPUs
(`models/kernels/gpu.py`): through Pallas' Triton backend, and through Mosaic for Hopper in 16 bits.
"""

from collections.abc import Callable

from triptych.models.decoder import Attend, paged_attend
from triptych.models.ragged import Ragged
from triptych.sharding.rules import ShardingRules


def _reference(batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    return paged_attend(batch, scale, rules.tp)


# Imported when chosen: Pallas' GPU backends take half a second, and warn where they are deprecated.
def _gpu(batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    from triptych.models.kernels.gpu import gpu_attend

    return gpu_attend(batch, scale, rules, "triton")


def _gpu_mosaic(batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    from triptych.models.kernels.gpu import gpu_attend

    return gpu_attend(batch, scale, rules, "mosaic")


KERNELS: dict[str, Callable[[Ragged, float, ShardingRules], Attend]] = {
    "reference": _reference,
    "gpu": _gpu,
    "gpu-mosaic": _gpu_mosaic,
}
"""By name, what makes the `Attend` of a step from its batch, the scale of scores, and where heads and pages lie."""


def attend_with(kernel: str, batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    """The `Attend` of a step. `kernel` is one of KERNELS."""
    return KERNELS[kernel](batch, scale, rules)

"""Which attention an engine's programs are built with, and how the pages lie that it reads.

"reference" runs everywhere and is the oracle of the others. "tpu" is for TPUs.
"""

from collections.abc import Callable

from triptych.models.decoder import Attend, paged_attend
from triptych.models.pool_layout import APART, COMBINED, PoolLayout
from triptych.models.ragged import Ragged
from triptych.sharding.rules import ShardingRules


def _reference(batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    return paged_attend(batch, scale, rules.tp)


def _tpu(batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    from triptych.models.kernels.tpu import tpu_attend  # loads Pallas, which nobody else needs

    return tpu_attend(batch, scale, rules)


KERNELS: dict[str, Callable[[Ragged, float, ShardingRules], Attend]] = {"reference": _reference, "tpu": _tpu}
"""By name, what makes the `Attend` of a step from its batch, the scale of scores, and where heads and pages lie."""

_LAYOUTS: dict[str, PoolLayout] = {"tpu": COMBINED}


def attend_with(kernel: str, batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    """The `Attend` of a step. `kernel` is one of KERNELS."""
    return KERNELS[kernel](batch, scale, rules)


def pool_layout(kernel: str) -> PoolLayout:
    """How the pages lie that the kernel attends over: keys and values apart, unless it says otherwise."""
    return _LAYOUTS.get(kernel, APART)

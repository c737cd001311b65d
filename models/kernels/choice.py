"""Which attention an engine's programs are built with.

"reference" runs everywhere and is the oracle of the others.
"""

from collections.abc import Callable

from triptych.models.decoder import Attend, paged_attend
from triptych.models.ragged import Ragged
from triptych.sharding.rules import ShardingRules


def _reference(batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    return paged_attend(batch, scale, rules.tp)


KERNELS: dict[str, Callable[[Ragged, float, ShardingRules], Attend]] = {"reference": _reference}
"""By name, what makes the `Attend` of a step from its batch, the scale of scores, and where heads and pages lie."""


def attend_with(kernel: str, batch: Ragged, scale: float, rules: ShardingRules) -> Attend:
    """The `Attend` of a step. `kernel` is one of KERNELS."""
    return KERNELS[kernel](batch, scale, rules)

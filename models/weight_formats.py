"""How weights may be stored on a device: the names that `--weights` takes, and what each means. No jax.

Only matrices are quantised: norms, biases and activations stay in the model's dtype. A format without "-layers" also stores the embedding
and the output head as int8 with a scale a row, whatever the layers have: a row is read whole, for a lookup as for a logit, and a logit
tolerates less than a hidden layer does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from triptych.models.errors import QuantisationError

__all__ = ["AUTO", "WEIGHT_FORMATS", "WeightFormat", "weight_format"]

AUTO = "auto"


@dataclass(frozen=True)
class WeightFormat:
    """What a model's matrices become.

    Attributes:
        name: one of WEIGHT_FORMATS.
        codes: of a weight: int8 in -127..127, int4 in -8..7 (two in a byte), or fp8 (e4m3).
        group: inputs of an output that share a scale, an even number; None: all of them do.
        tables: whether embedding and output head are quantised, too (int8, a scale a row).
    """

    name: str
    codes: Literal["int8", "int4", "fp8"]
    group: int | None = None
    tables: bool = True

    @property
    def of_tables(self) -> WeightFormat | None:
        """The format of embedding and output head; None: they stay as they are."""
        return WeightFormat(self.name, "int8") if self.tables else None


# A group of 64 costs a quarter of a bit a weight for a scale of two bytes, one of 128 an eighth, one of 32 a half.
_WHOLE = (
    WeightFormat("int8", "int8"),
    WeightFormat("fp8", "fp8"),
    WeightFormat("int4", "int4", 64),
    WeightFormat("int4-32", "int4", 32),
    WeightFormat("int4-128", "int4", 128),
)

WEIGHT_FORMATS: dict[str, WeightFormat] = {
    stored.name: stored
    for whole in _WHOLE
    for stored in (whole, replace(whole, name=f"{whole.name}-layers", tables=False))
}
"""By name. "auto" is not among them: it is the model's dtype."""


def weight_format(name: str) -> WeightFormat | None:
    """The format of that name; None for "auto". Raises QuantisationError for a name that is none."""
    if name == AUTO:
        return None
    if name not in WEIGHT_FORMATS:
        raise QuantisationError(f"weights {name!r} are unknown; known: {', '.join((AUTO, *WEIGHT_FORMATS))}")
    return WEIGHT_FORMATS[name]

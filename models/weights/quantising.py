"""Weights that are quantised on the way in, on the devices, after sharding: matrix by matrix.

Each matrix is placed in the model's dtype, turned into codes and scales by a small program, and dropped before the next one is read, so a
device never holds more than one matrix beside what it keeps. Scales are of logical rows, so they do not depend on the mesh: a largest
value is the same number however its row is spread.
"""

from collections.abc import Callable, Iterable
from functools import cache

import jax
from jax.sharding import Sharding

from triptych.models.quantised import quantise
from triptych.models.structure import DecoderStructure
from triptych.models.weight_formats import WeightFormat
from triptych.sharding.rules import FUSED_AXES, parameter_axes

__all__ = ["quantise_all"]


def quantise_all(
    plain: DecoderStructure, placed: Iterable[jax.Array], structure: DecoderStructure
) -> tuple[jax.Array, ...]:
    """The parameters of `structure`, a quantised model, from those of the same model as it is: `placed`, in the order of `plain`.

    `placed` may be a generator: one of its arrays is held at a time.
    """
    stored = structure.stored
    assert stored is not None
    abstract = dict(zip(structure.paths, structure.abstract, strict=True))
    arrays: dict[str, jax.Array] = {}
    following = iter(placed)
    for path in plain.paths:
        if path in abstract:
            arrays[path] = next(following)
            continue
        within = {
            name.rpartition(".")[2]: struct.sharding for name, struct in abstract.items() if name.startswith(f"{path}.")
        }
        table = path.startswith(("embedding.", "lm_head."))
        format = stored.of_tables if table else stored
        assert format is not None
        outputs_last = parameter_axes(path)[1] in FUSED_AXES
        codes = _program(format, outputs_last, tuple(sorted(within.items())))(next(following))
        # Waiting frees the matrix, which has no name here, before the next one is read.
        arrays |= {f"{path}.{name}": jax.block_until_ready(part) for name, part in codes.items()}
    return tuple(arrays[path] for path in structure.paths)


@cache
def _program(
    stored: WeightFormat, outputs_last: bool, shardings: tuple[tuple[str, Sharding], ...]
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """One program for all matrices of a kind: made anew, each would be traced again."""

    def run(weight: jax.Array) -> dict[str, jax.Array]:
        return quantise(stored, weight.T if outputs_last else weight)

    return jax.jit(run, out_shardings=dict(shardings))

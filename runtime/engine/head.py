"""The output head alone: which of the model's arrays it uses, and the function over just those.

The sampler runs every step, and each argument of a call costs host time; a model has hundreds of arrays and its head uses one. Which
one (a tied embedding or a matrix of its own) is read off the traced function instead of being known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from triptych.runtime.engine.decoders import ServedStructure

Head = Callable[[Float[Array, "rows hidden"]], Float[Array, "rows vocab"]]


@dataclass(frozen=True)
class HeadParams:
    """The part of a model that turns hidden states into logits. `indices` are places in the flat tuple of parameters."""

    structure: ServedStructure
    indices: tuple[int, ...]

    @property
    def abstract(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(self.structure.abstract[index] for index in self.indices)

    def select(self, params: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """The head's arrays out of all parameters."""
        return tuple(params[index] for index in self.indices)

    def over(self, arrays: tuple[jax.Array, ...]) -> Head:
        """The head as a function, inside a traced program. The rest of the model stays abstract."""
        leaves = list(self.structure.abstract)
        for index, array in zip(self.indices, arrays, strict=True):
            leaves[index] = array  # pyright: ignore[reportArgumentType, reportCallIssue]
        return self.structure.merge(leaves).head  # pyright: ignore[reportArgumentType]


def head_params(structure: ServedStructure) -> HeadParams:
    """Find the arrays that the head reads."""
    hidden = jax.ShapeDtypeStruct((1, structure.config.hidden_size), jnp.dtype(structure.dtype))
    traced = jax.make_jaxpr(lambda params, x: structure.merge(params).head(x))(structure.abstract, hidden).jaxpr
    used = {id(variable) for equation in traced.eqns for variable in equation.invars}
    return HeadParams(structure, tuple(at for at, variable in enumerate(traced.invars[:-1]) if id(variable) in used))


def without(tokens: tuple[int, ...], logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
    """`logits` with those of `tokens` at -inf: they are never drawn. Inside a traced program."""
    if not tokens:
        return logits
    never = np.zeros(logits.shape[1], bool)
    never[list(tokens)] = True
    return jnp.where(never, -jnp.inf, logits)

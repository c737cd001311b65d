"""Many small per-step inputs as one int32 vector: one host-to-device copy and one argument instead of ten.

A `Packing` is the single description of the vector. The host fills numpy views into it, the traced program slices it by the same
offsets, and floats and unsigned words travel as their bits. Each step packs into a fresh buffer: an executable may still be reading
the previous one, and on CPU it reads the host's memory itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Int32

WORD = np.dtype(np.int32)

FieldType = Literal["int32", "uint32", "float32"]


@dataclass(frozen=True)
class Field:
    """One named part of a packed vector."""

    name: str
    shape: tuple[int, ...]
    dtype: FieldType = "int32"

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Packing:
    """The fields of a packed vector, one after another."""

    fields: tuple[Field, ...]

    @cached_property
    def size(self) -> int:
        """Length of the vector in 32-bit words."""
        return sum(field.size for field in self.fields)

    @cached_property
    def _places(self) -> tuple[tuple[Field, slice], ...]:
        """Each field and the words that it has."""
        ends = list(accumulate(field.size for field in self.fields))
        starts = [end - field.size for field, end in zip(self.fields, ends, strict=True)]
        return tuple(zip(self.fields, map(slice, starts, ends), strict=True))

    def host(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """A new zeroed vector and the writable views of its fields."""
        buffer = np.zeros(self.size, WORD)
        views: dict[str, np.ndarray] = {}
        for field, words in self._places:
            view = buffer[words]
            view = view if field.dtype == "int32" else view.view(field.dtype)
            views[field.name] = view if len(field.shape) == 1 else view.reshape(field.shape)
        return buffer, views

    def unpack(self, packed: Int32[Array, "words"]) -> dict[str, jax.Array]:
        """The fields inside a traced program."""
        out: dict[str, jax.Array] = {}
        for field, words in self._places:
            part = jax.lax.slice(packed, (words.start,), (words.stop,)).reshape(field.shape)
            out[field.name] = part if field.dtype == "int32" else jax.lax.bitcast_convert_type(part, field.dtype)
        return out

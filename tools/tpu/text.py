"""Every device program of a text engine and of what moves its KV pages, lowered for a mesh from shapes alone: no weights, no pools.

The programs are `Programs.all()` of an engine and those of its `PageMover`. Compiling one for all layers of a large model takes minutes, and layers are alike; so
each can be had for fewer layers under the same name, with the pool's pages and all else as in the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from triptych.models.config import ModelConfig
from triptych.models.structure import DecoderStructure, decoder_structure
from triptych.models.weight_formats import AUTO, weight_format
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.compiling import Program
from triptych.runtime.engine.config import EngineConfig, engine_config
from triptych.runtime.engine.decoders import self_group
from triptych.runtime.engine.memory import page_bytes, pages_that_fit
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.engine.pools import layout_of
from triptych.runtime.engine.programs import Programs
from triptych.runtime.engine.variants import Variant
from triptych.runtime.transfer.layer_groups import cut_layers
from triptych.sharding.rules import ShardingRules

DTYPE = "bfloat16"
EXPORT_PAGES = 8  # pages an offer


@dataclass(frozen=True)
class Limits:
    """What a deployment would be started with. `memory_fraction` of a chip is for weights and pages together; `kv_layer_groups` layers go into an offer; `weights` are stored so."""

    max_model_len: int = 4096
    max_num_seqs: int = 32
    chunk_tokens: int = 2048
    page_size: int = 16
    memory_fraction: float = 0.9
    attention: str = "tpu"
    kv_layer_groups: int | None = None
    weights: str = AUTO


@dataclass(frozen=True)
class Piece:
    """One program. `layers`: how many it works on; `own_bytes`: of weights, pool and sampler state it is given or makes that much a chip."""

    name: str
    layers: int
    own_bytes: int
    lower: Callable[[], Any]


@dataclass(frozen=True)
class TextEngine:
    """The programs of one model on one mesh; `memory_bytes` is a chip's."""

    model: ModelConfig
    mesh: Mesh
    limits: Limits
    memory_bytes: int

    @cached_property
    def structure(self) -> DecoderStructure:
        return decoder_structure(self.model, ShardingRules(self.mesh), DTYPE, weight_format(self.limits.weights))

    @cached_property
    def weight_bytes(self) -> int:
        """Of one chip."""
        return sum(map(shard_bytes, self.structure.abstract))

    @cached_property
    def state_bytes(self) -> int:
        """The sampler's: an int32 and a bool for each slot and token id."""
        return self.limits.max_num_seqs * (self.model.vocab_size * 5 + 4)

    @cached_property
    def num_pages(self) -> int:
        """What the weights leave room for. Raises ConfigError if that is less than one sequence."""
        limits = self.limits
        free = int(self.memory_bytes * limits.memory_fraction) - self.weight_bytes - self.state_bytes
        return pages_that_fit(
            self.structure,
            page_size=limits.page_size,
            kv_dtype=DTYPE,
            max_model_len=self.max_model_len,
            bytes_per_device=free,
            attention=limits.attention,
        )

    @property
    def max_model_len(self) -> int:
        return min(self.limits.max_model_len, self.model.max_position)

    @cached_property
    def pool_bytes(self) -> int:
        """KV pages of one chip."""
        return self.num_pages * page_bytes(self.structure, self.limits.page_size, DTYPE, self.limits.attention)

    @property
    def resident_bytes(self) -> int:
        """What is on a chip while anything runs: weights, pool, sampler state."""
        return self.weight_bytes + self.pool_bytes + self.state_bytes

    def pieces(self, layers: int | None = None, *, every: bool = True) -> dict[str, Piece]:
        """Programs by name, of so many layers (default: the model's own). Names do not depend on it. With layer groups `layers` is of a group.

        Not `every`: only the largest of those that differ in their sizes alone.
        """
        step = self.limits.kv_layer_groups
        total = self.model.num_layers if layers is None else layers if step is None else 2 * layers
        model = replace(self.model, num_layers=total, layer_windows=self.model.layer_windows[:total])
        config = self._config(total, None if step is None or layers is None else layers)
        whole = self.structure
        structure = whole if layers is None else decoder_structure(model, whole.rules, DTYPE, whole.stored)
        group = self_group(model, DTYPE)
        programs = Programs(structure, group, config)
        resident = {id(struct) for struct in structure.abstract}
        found = {}
        for program in programs.all():
            if not every and not decides(program, config.buckets):
                continue
            of = self._layers_of(program, config, total)
            found[program.name] = Piece(program.name, of, self._own_bytes(program, resident), program.lower)
        return found | self._moves(structure, config, total)

    def _config(self, layers: int, step: int | None = None) -> EngineConfig:
        limits, step = self.limits, step or self.limits.kv_layer_groups
        return engine_config(
            num_pages=self.num_pages,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=self.max_model_len,
            chunk_tokens=min(limits.chunk_tokens, self.max_model_len),
            page_size=limits.page_size,
            kv_dtype=DTYPE,
            layer_groups=cut_layers(layers, step or layers),
            attention=limits.attention,
        )

    def _layers_of(self, program: Program, config: EngineConfig, total: int) -> int:
        kind = program.key[0]
        if kind == "layers":
            start, stop = config.layer_groups[program.key[2]]
            return stop - start
        return total if kind in ("extend", "copy", "pools") else 0

    def _own_bytes(self, program: Program, weights: set[int]) -> int:
        """Of what stays on the chip, the part that the compiler counts for this program."""
        kind = program.key[0]
        if kind == "pools":
            return self.pool_bytes
        stateful = kind in ("seat", "state") or (kind == "sample" and program.key[1] is Variant.FULL)
        state = self.state_bytes if stateful else 0
        leaves = jax.tree.leaves(program.arguments)
        pools = [leaf for leaf in leaves if leaf.ndim == 4]  # nothing else has pages, entries, heads and their numbers
        return state + sum(shard_bytes(leaf) for leaf in leaves if id(leaf) in weights) + sum(map(shard_bytes, pools))

    def _moves(self, structure: DecoderStructure, config: EngineConfig, total: int) -> dict[str, Piece]:
        """Gather and scatter of KV pages, in chunks of every size that a peer may ask for."""
        group = self_group(structure.config, DTYPE)
        mover = PageMover(
            self.mesh, structure.head_layout, total, config.num_pages, config.page_size, group.head_dim, DTYPE, EXPORT_PAGES,
            config.layer_groups, structure.rules.pool(), layout_of(structure, config.attention, DTYPE),
        )  # fmt: skip
        largest = max(stop - start for start, stop in config.layer_groups)
        found = {}
        for program in mover.programs():
            kind, _, heads, layers = program.key
            if layers == f"layers={largest}":
                name = f"{kind} {heads}"
                pools = self.pool_bytes // self.model.num_layers * largest
                found[name] = Piece(name, largest, pools, program.lower)
        return found


def shard_bytes(struct: Any) -> int:
    """Of one device's part of an array that is only a shape yet."""
    return math.prod(struct.sharding.shard_shape(struct.shape)) * struct.dtype.itemsize


def _kind(shape: ExtendShape) -> tuple[bool, ...]:
    return shape.decode_rows > 0, shape.prefill_tokens > 0, shape.fresh, shape.last_only


def decides(program: Program, buckets: Buckets) -> bool:
    """Whether a program is the largest of those that differ in their sizes alone: if the largest fit, all do."""
    kind = program.key[0]
    if kind == "sample":
        return program.key[2] == buckets.draws[-1]
    if kind == "score":
        return program.key[1] == buckets.score_tokens[-1]
    shape = program.key[1] if len(program.key) > 1 else None
    if not isinstance(shape, ExtendShape):
        return True
    alike = [other for other in buckets.extend if _kind(other) == _kind(shape)]
    return shape == max(alike, key=lambda other: (other.tokens, other.width))

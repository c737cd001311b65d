"""Every program of an engine's decoder, and the table of the compiled ones.

Programs take flat tuples of arrays and numpy vectors, and outputs are pinned to the shardings that the next program takes them in: a pool
that comes back laid out otherwise would compile everything again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.kernels.choice import prepare
from triptych.models.kv import KVGroup
from triptych.models.structure import Pools
from triptych.runtime.engine.batch import extend_packing, takes_media
from triptych.runtime.engine.buckets import ExtendShape
from triptych.runtime.engine.compiler_options import compiler_options
from triptych.runtime.engine.compiling import Executable, Key, Program
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.decoders import ServedStructure
from triptych.runtime.engine.extend import build_extend, copy_pages
from triptych.runtime.engine.head import Head, HeadParams, head_params, without
from triptych.runtime.engine.layer_programs import LayerCut, LayerRun, build_embed, build_end, build_layers
from triptych.runtime.engine.media_pool import EmbeddingPool, MediaPool
from triptych.runtime.engine.pools import pool_structs
from triptych.runtime.engine.sample import sample_full, sample_packing, sample_plain
from triptych.runtime.engine.score import score
from triptych.runtime.engine.state import SamplerState, fresh_state, seat_program
from triptych.runtime.engine.variants import Variant

# Page copies happen when samples of one prompt part ways; a plan with more copies calls the program again.
COPY_PAGES = 8


class Programs:
    """The compiled programs of one engine's decoder. `media` is the pool of what was encoded, if requests may have media."""

    def __init__(
        self, structure: ServedStructure, group: KVGroup, config: EngineConfig, media: MediaPool | None = None
    ) -> None:
        prepare(config.attention)
        self._structure, self._config, self._media = structure, config, media
        self.head: HeadParams = head_params(structure)
        self._pools = pool_structs(structure, group, config)
        injections = media.injections if isinstance(media, EmbeddingPool) else ()
        # Only text decoders are ever cut.
        self._cut = LayerCut(structure, config.layer_groups, injections)  # pyright: ignore[reportArgumentType]
        self._compiled: dict[Key, Executable] = {}

    def __getitem__(self, key: Key) -> Executable:
        return self._compiled[key]

    def add(self, compiled: Mapping[Key, Executable]) -> None:
        """Take in what `compile_programs` made of `all`."""
        self._compiled.update(compiled)

    def all(self) -> list[Program]:
        """Every program that the configuration asks for; those that take longest to compile first."""
        shapes = sorted(self._config.buckets.extend, key=lambda shape: shape.prefill_tokens, reverse=True)
        sizes = self._config.buckets.draws
        return [
            *(program for shape in shapes for program in self._extends(shape)),
            *(self._sample(variant, size) for variant in reversed(Variant) for size in sizes),
            *(self._score(tokens) for tokens in self._config.buckets.score_tokens if self._config.prompt_logprobs),
            *self._upkeep(),
        ]

    def by_layer_groups(
        self,
        shape: ExtendShape,
        params: tuple[jax.Array, ...],
        packed: np.ndarray,
        last_tokens: jax.Array,
        *media: Pools,
    ) -> LayerRun:
        """Begin an extend of a size that is computed layer group by layer group."""
        return LayerRun(self._compiled, self._cut, shape, params, packed, last_tokens, *media)

    def _small(self, shape: tuple[int, ...], dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        """An input or output that every device holds whole."""
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=self._structure.rules.replicated())

    def _hidden(self, rows: int) -> jax.ShapeDtypeStruct:
        return self._small((rows, self._structure.config.hidden_size), self._structure.dtype)

    def _state(self) -> SamplerState:
        slots, vocab = self._config.max_num_seqs, self._structure.config.vocab_size
        counts, in_prompt = self._small((slots, vocab)), self._small((slots, vocab), np.bool_)
        return SamplerState(self._small((self._config.carried,)), counts, in_prompt)  # pyright: ignore

    def _shardings(self, structs: Any) -> Any:
        return jax.tree.map(lambda struct: struct.sharding, structs)

    def _extend(self, shape: ExtendShape) -> Program:
        small = self._structure.rules.replicated()
        media = self._media if takes_media(shape, self._config) else None
        return Program(
            key=("extend", shape),
            run=build_extend(self._structure, shape, self._config, media),
            arguments=(
                self._structure.abstract,
                self._pools,
                self._small((extend_packing(shape, self._config).size,)),
                self._small((self._config.carried,)),
                *(() if media is None else (media.structs,)),
            ),
            outputs=(small, small, self._shardings(self._pools)),
            donated=(1,),
            options=compiler_options(self._config.attention, shape.tokens, alone=shape.fresh),
        )

    def _extends(self, shape: ExtendShape) -> tuple[Program, ...]:
        """What computes steps of this size: one program, or one for each kind of layer group and two around them."""
        if not self._config.by_layer_groups(shape):
            return (self._extend(shape),)
        cut, config, small = self._cut, self._config, self._structure.rules.replicated()
        media = self._media if takes_media(shape, config) else None
        outer = cut.outer(self._structure.abstract)
        packed, hidden = self._small((extend_packing(shape, config).size,)), self._hidden(shape.tokens)

        def layers(group: int) -> Program:
            pools = self._pools[slice(*cut.groups[group])]
            inner = media if cut.reads_media(group) else None
            params = cut.layers(self._structure.abstract, group)
            return Program(
                key=("layers", shape, group),
                run=build_layers(cut, group, shape, config, inner),
                arguments=(params, pools, hidden, packed, *(() if inner is None else (inner.structs,))),
                outputs=(small, self._shardings(pools)),
                donated=(1,),
                options=compiler_options(config.attention, shape.tokens),
            )

        carried = self._small((config.carried,))
        arguments = (outer, packed, carried, *(() if media is None else (media.structs,)))
        return (
            *(layers(group) for group in sorted(set(cut.alike))),
            Program(("embed", shape), build_embed(cut, shape, config, media), arguments, (small, small)),
            Program(("end", shape), build_end(cut, shape, config), (outer, hidden, packed), (small, small)),
        )

    def _sample(self, variant: Variant, draws: int) -> Program:
        packing = sample_packing(variant, draws)
        state = self._state()

        def run(head: tuple[jax.Array, ...], picked: jax.Array, packed: jax.Array, state: Any) -> Any:
            logits = without(self._config.suppressed, self.head.over(head)(picked[:draws]))
            inputs = packing.unpack(packed)
            if variant is Variant.FULL:
                return sample_full(logits, inputs, state)
            return sample_plain(variant, logits, inputs, state)

        full = variant is Variant.FULL
        carried = state if full else state.last_tokens
        return Program(
            key=("sample", variant, draws),
            run=run,
            arguments=(
                self.head.abstract,
                self._hidden(self._config.max_draws),
                self._small((packing.size,)),
                carried,
            ),
            outputs=(self._structure.rules.replicated(), self._shardings(carried)),
            donated=(3,) if full else (),
            options=compiler_options(self._config.attention, draws),
        )

    def _score(self, tokens: int) -> Program:
        def run(head: tuple[jax.Array, ...], hidden: jax.Array, targets: jax.Array) -> jax.Array:
            over: Head = self.head.over(head)
            return score(over, hidden, targets)

        return Program(
            key=("score", tokens),
            run=run,
            arguments=(self.head.abstract, self._hidden(tokens), self._small((tokens,))),
            outputs=self._structure.rules.replicated(),
            options=compiler_options(self._config.attention, tokens),
        )

    def _upkeep(self) -> tuple[Program, ...]:
        """Page copies, seats, and making pools and state anew."""
        state, vocab = self._state(), self._structure.config.vocab_size
        sizes = self._config.carried, self._config.max_num_seqs, vocab
        pools, pool_shardings = self._pools, self._shardings(self._pools)
        seats = (state.counts, state.in_prompt)

        def allocate() -> Any:
            return jax.tree.map(lambda struct: jnp.zeros(struct.shape, struct.dtype), pools)

        return (
            Program(("copy",), copy_pages, (pools, self._small((2, COPY_PAGES))), pool_shardings, donated=(0,)),
            Program(
                ("seat",),
                seat_program,
                (*seats, self._small(()), self._small((vocab,)), self._small((vocab,), np.bool_)),
                self._shardings(seats),
                donated=(0, 1),
            ),
            Program(("pools",), allocate, (), pool_shardings),
            Program(("state",), partial(fresh_state, *sizes), (), self._shardings(state)),
        )

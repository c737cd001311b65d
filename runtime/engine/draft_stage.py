"""The draft model of an engine: its weights, its KV pool, and its part of a step, which comes before the target's.

Its pool has as many pages as the target's, of the same size, and is addressed by the same block tables; its heads, layers and widths are its own. So nobody allocates
for it, and whoever owns a page owns both halves. What it computes is never moved to another instance: that one's draft model reads the tokens itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.structure import Pools
from triptych.models.weights.load import LoadedDecoder
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.batch import BatchPacker, extend_packing
from triptych.runtime.engine.block_tables import check_pages
from triptych.runtime.engine.buckets import PlanError, geometric, smallest
from triptych.runtime.engine.compiling import Executable, Key, Program
from triptych.runtime.engine.config import EngineConfig, engine_config
from triptych.runtime.engine.decoders import self_group
from triptych.runtime.engine.draft_programs import DRAFT_VARIANTS, build_catch_up, build_draft, draft_packing
from triptych.runtime.engine.pools import pool_structs
from triptych.runtime.engine.state import SlotTables
from triptych.runtime.engine.variants import Variant
from triptych.runtime.instance.plan import Draft, StepPlan


class DraftStage:
    """Used by the engine that owns it, on its thread.

    Attributes:
        params: the draft model's weights.
        pools: its KV, as `Engine.pools` is the target's.
    """

    def __init__(self, config: EngineConfig, loaded: LoadedDecoder) -> None:
        """`config` is the engine's. Raises ConfigError if that has no room for guesses."""
        if not config.draft_model:
            raise ConfigError("an engine with a draft model needs a config with draft_model")
        self.params = loaded.params
        self.pools: Pools = ()
        self._config, self._structure = config, loaded.structure
        self._reading = _reading(config)
        self._rows = BatchPacker(self._reading)
        self._sizes = geometric(1, config.max_num_seqs)
        self._widths = tuple(sorted({shape.width for shape in self._reading.buckets.extend}))
        self._structs = pool_structs(loaded.structure, self_group(loaded.config, config.kv_dtype), config)
        self._compiled: dict[Key, Executable] = {}

    # ---- life ----------------------------------------------------------------------------------------------------------------------

    def programs(self) -> list[Program]:
        """Everything to compile."""
        small = self._structure.rules.replicated()
        shardings = jax.tree.map(lambda struct: struct.sharding, self._structs)
        carried = self._small(self._config.carried)

        def allocate() -> Any:
            return jax.tree.map(lambda struct: jnp.zeros(struct.shape, struct.dtype), self._structs)

        def program(key: Key, run: Any, words: int, outputs: Any, *more: jax.ShapeDtypeStruct) -> Program:
            arguments = (self._structure.abstract, self._structs, self._small(words), *more)
            return Program(key, run, arguments, outputs, donated=(1,))

        return [
            *(
                program(
                    ("draft", *sizes),
                    build_draft(self._structure, *sizes, self._config),
                    draft_packing(*sizes).size,
                    (small, small, shardings),
                    carried,
                )
                for sizes in self._all_sizes()
            ),
            *(
                program(
                    ("catch up", shape),
                    build_catch_up(self._structure, shape, self._reading),
                    extend_packing(shape, self._reading).size,
                    shardings,
                )
                for shape in self._reading.buckets.extend
            ),
            Program(("draft pools",), allocate, (), shardings),
        ]

    def add(self, compiled: Mapping[Key, Executable]) -> None:
        """Take in what `compile_programs` made of `programs`."""
        self._compiled.update(compiled)

    def rebuild(self) -> None:
        """An empty pool."""
        self.pools = ()
        self.pools = jax.block_until_ready(self._compiled["draft pools",]())

    def run_each_once(self, last_tokens: jax.Array) -> None:
        """Run every program on padding, so that no request pays for its first call."""
        for sizes in self._all_sizes():
            packed, views = draft_packing(*sizes).host()
            self._pad(views, 0)
            views["rounds"][0] = self._config.speculative_tokens
            _, _, self.pools = self._compiled["draft", *sizes](self.params, self.pools, packed, last_tokens)
        for shape in self._reading.buckets.extend:
            packed, views = extend_packing(shape, self._reading).host()
            views["carried"].fill(self._reading.carried)
            self.pools = self._compiled["catch up", shape](self.params, self.pools, packed)
        jax.block_until_ready(self.pools)

    # ---- steps ---------------------------------------------------------------------------------------------------------------------

    def run(self, plan: StepPlan, tables: SlotTables, last_tokens: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """Start a plan's catch-ups and drafts; returns (the guesses [rows, most], one row for each draft, or None; `last_tokens` with them in).

        `tables` are those of the sampler. Raises PlanError for a plan that was not compiled for.
        """
        if plan.catch_ups:
            self._catch_up(plan)
        if not plan.drafts:
            return None, last_tokens
        sizes = self._fitting(plan.drafts, tables)
        packed, views = draft_packing(*sizes).host()
        for at, draft in enumerate(plan.drafts):
            self._fill(views, at, draft)
        self._pad(views, len(plan.drafts))
        slots = views["slot"][: len(plan.drafts)]
        for name, column in tables.columns.items():
            if name in views:
                views[name][: len(slots)] = column[slots]
        views["rounds"][0] = max(draft.count for draft in plan.drafts)
        guesses, last_tokens, self.pools = self._compiled["draft", *sizes](self.params, self.pools, packed, last_tokens)
        guesses.copy_to_host_async()
        return guesses, last_tokens

    def _catch_up(self, plan: StepPlan) -> None:
        batch = self._rows.pack(StepPlan(plan.id, plan.catch_ups))
        assert batch is not None, "it has rows"
        self.pools = self._compiled["catch up", batch.shape](self.params, self.pools, batch.packed)

    def _fitting(self, drafts: tuple[Draft, ...], tables: SlotTables) -> tuple[int, int, Variant]:
        """(rows, width, variant) of the smallest program that holds these."""
        needed = max(-(-(draft.start + 1 + draft.count) // self._config.page_size) for draft in drafts)
        greedy = tables.variant([draft.slot for draft in drafts]) is Variant.GREEDY
        return (
            smallest(self._sizes, len(drafts), "drafts"),
            smallest(self._widths, needed, "pages of a draft"),
            Variant.GREEDY if greedy else Variant.FILTERED,
        )

    def _fill(self, views: dict[str, np.ndarray], at: int, draft: Draft) -> None:
        if not 1 <= draft.count <= self._config.speculative_tokens:
            raise PlanError(
                f"slot {draft.slot}: {draft.count} guesses; expected 1 to {self._config.speculative_tokens}"
            )
        if draft.start + 1 >= len(draft.pages) * self._config.page_size:
            raise PlanError(f"slot {draft.slot}: {len(draft.pages)} pages cannot hold {draft.start + 2} tokens")
        check_pages(draft.pages, self._config.num_pages)
        before, *last = draft.tokens
        views["slot"][at], views["before"][at] = draft.slot, before
        views["tokens"][at] = last[0] if last else 0
        views["carried"][at] = self._config.carried if last else draft.slot
        views["start"][at], views["offset"][at] = draft.start, draft.position - draft.start
        views["live"][at] = 1
        table = views["page_indices"][at]
        used = min(len(draft.pages), len(table))
        table[:used] = draft.pages[:used]

    def _pad(self, views: dict[str, np.ndarray], used: int) -> None:
        """Rows that nobody needs: their tables are of null pages, their guesses go nowhere."""
        views["slot"][used:] = views["carried"][used:] = self._config.carried

    def _all_sizes(self) -> list[tuple[int, int, Variant]]:
        return list(product(self._sizes, self._widths, DRAFT_VARIANTS))

    def _small(self, words: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((words,), np.int32, sharding=self._structure.rules.replicated())


def _reading(config: EngineConfig) -> EngineConfig:
    """The draft model as an engine that reads prompts: limits of its catch-ups."""
    return engine_config(
        num_pages=config.num_pages,
        max_num_seqs=1,
        max_model_len=config.max_model_len,
        chunk_tokens=config.chunk_tokens,
        page_size=config.page_size,
        max_prefill_rows=config.max_prefill_rows,
        kv_dtype=config.kv_dtype,
        roles=frozenset({Role.PREFILL}),
        prompt_logprobs=False,
        attention=config.attention,
    )

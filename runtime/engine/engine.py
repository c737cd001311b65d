"""The device half of an instance: takes StepPlans in order, runs them as compiled programs on a mesh, gives back what was drawn.

A step is packed on the host into at most three int32 vectors and dispatched as a few program calls that wait for nothing:

    copy pages -> seat samplers -> encode media -> draft -> extend (KV of all rows, hidden states of the draws) -> sample -> score

or, where KV leaves while the prompt is computed, with `extend` cut into layer groups (layer_programs.py) that `advance` dispatches one by one.

The next step may be dispatched before this one is read: input tokens and penalty counts it depends on are on the device. One thread, the
device loop, owns an engine and with it `pools`; whoever else moves pages does it on that thread, takes `pools` and puts the result back.

Pools and sampler state are donated to the programs. If a call fails they are gone, so an exception leaves the engine broken until `rebuild`
makes new ones (the instance starts a new epoch). Nothing is compiled then, or at any time after `compile`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from triptych.models.structure import Pools
from triptych.runtime.core.errors import EngineError
from triptych.runtime.engine.batch import BatchPacker, ExtendBatch, takes_media
from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.engine.compile_guard import compile_count
from triptych.runtime.engine.compiling import CompiledBeside, CompileReport, Progress, compile_programs
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.copies import copy_tables
from triptych.runtime.engine.decoders import ServedDecoder, self_group
from triptych.runtime.engine.draft_stage import DraftStage
from triptych.runtime.engine.draws import DrawBatch, DrawPacker, check_seat
from triptych.runtime.engine.kept_programs import KeptPrograms
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.programs import Programs
from triptych.runtime.engine.results import PartialStep, PendingStep, read
from triptych.runtime.engine.state import SamplerState, seat_rows
from triptych.runtime.engine.variants import Variant
from triptych.runtime.engine.warmup import run_each_once
from triptych.runtime.instance.plan import Pool, Seat, StepPlan, StepResult


class Engine:
    """Executes the plans of one instance on one mesh.

    Attributes:
        pools: per layer (keys, values), each [num_pages, page_size, kv_heads_total, head_dim], with (key scales, value scales) behind codes,
            or what the attention kernel wants instead (`models/pool_layout.py`); page 0 is the null page.
        media: the pool of what was encoded, and the encoder if there is one; None for models without media.
        draft: the draft model that guesses tokens; None where nobody does, or the host.
    """

    def __init__(
        self,
        config: EngineConfig,
        loaded: ServedDecoder,
        mesh: Mesh,
        media: MediaStage | None = None,
        draft: DraftStage | None = None,
    ) -> None:
        if loaded.rules.mesh != mesh:
            raise ValueError(f"the weights lie on mesh {loaded.rules.mesh}, the engine was given {mesh}")
        if (media is None) == (config.media_pages > 0):
            raise ValueError(f"media_pages is {config.media_pages}, and the engine was given {media}")
        if config.draft_model == (draft is None):
            raise ValueError(f"draft_model is {config.draft_model}, and the engine was given {draft}")
        group = self_group(loaded.config, config.kv_dtype)
        self.config = config
        self.mesh = mesh
        self.model = loaded.config
        self._params = loaded.params
        self.media = media
        self.draft = draft
        self._stages = [stage for stage in (media, draft) if stage is not None]
        self._programs = Programs(loaded.structure, group, config, None if media is None else media.pool)
        self._head = self._programs.head.select(loaded.params)
        self._rows = BatchPacker(config)
        self._draws = DrawPacker(config.buckets.draws, config.max_num_seqs, config.carried)
        self._broken: str | None = "it is not compiled yet"
        self.pools: Pools = ()
        self._state: SamplerState | None = None

    # ---- life ----------------------------------------------------------------------------------------------------------------------

    def compile(
        self,
        progress: Progress = lambda name, done, total: None,
        beside: Sequence[CompiledBeside] = (),
        kept: KeptPrograms | None = None,
    ) -> CompileReport:
        """Compile every program that is not `kept`, and those of what is `beside`, make pools and state, and run each of the engine's once.

        `progress(name, done, total)` is called in between.
        """
        compile_count()  # starts the count of the compile guard
        others = (*beside, *self._stages)
        programs = [*(program for other in others for program in other.programs()), *self._programs.all()]
        compiled, report = compile_programs(programs, self.config.compile_threads, progress, kept)
        for programs_of in (self._programs, *others):
            programs_of.add(compiled)
        began = time.perf_counter()
        try:
            self.rebuild()
            self.pools, self._state = run_each_once(
                self._programs, self.config, self._params, self.pools, self._usable(), self._embeddings
            )
            if self.media is not None:
                self.media.run_each_once()
            if self.draft is not None:
                self.draft.run_each_once(self._state.last_tokens)
        except Exception as error:
            if kept is not None:
                kept.distrust()
            raise self.fail(error) from error
        return replace(report, warm_up_seconds=time.perf_counter() - began)

    def rebuild(self) -> None:
        """Empty pools and sampler state after a failure, from the programs that are there. Raises EngineError if even that fails."""
        self.pools, self._state = (), None
        self._draws = DrawPacker(self.config.buckets.draws, self.config.max_num_seqs, self.config.carried)
        try:
            self.pools = self._programs[("pools",)]()
            self._state = self._programs[("state",)]()
            jax.block_until_ready((self.pools, self._state))
            for stage in self._stages:
                stage.rebuild()
        except Exception as error:
            raise self.fail(error) from error
        self._broken = None

    @property
    def params(self) -> tuple[jax.Array, ...]:
        """The decoder's weights."""
        return self._params

    @property
    def broken(self) -> str | None:
        """Why the engine cannot run a plan, or None."""
        return self._broken

    # ---- steps ---------------------------------------------------------------------------------------------------------------------

    def dispatch(self, plan: StepPlan) -> PendingStep | PartialStep:
        """Start a step without waiting for it.

        With layer groups, a plan that exports KV comes back with its first group dispatched: gather what is exported of it, and `advance`.

        Raises PlanError for a plan that was not compiled for, and EngineError when a program fails; both leave the engine broken.
        """
        state = self._usable()
        try:
            self._seat(plan.seats)
            batch, draws = self._rows.pack(plan), self._draws.pack(plan)
            if plan.copies:
                self._copy(plan.copies)
            for seat in plan.seats:
                if seat.params.penalised:
                    state = self._seat_state(state, seat)
            encoded = self._encode(plan)
            if batch is None:
                self._state = state
                return PendingStep(plan, None, encoded=encoded)
            guesses, state = self._guess(plan, state)
            media = (self._embeddings,) if takes_media(batch.shape, self.config) else ()
            if self.config.by_layer_groups(batch.shape):
                return self._begin(plan, batch, draws, state, encoded, guesses, *media)
            extend = self._programs[("extend", batch.shape)]
            picked, hidden, self.pools = extend(self._params, self.pools, batch.packed, state.last_tokens, *media)
            return self._launched(plan, batch, draws, state, encoded, guesses, picked, hidden)
        except Exception as error:
            raise self.fail(error) from error

    def advance(self, step: PartialStep) -> PendingStep | PartialStep:
        """Dispatch the next layer group of the step that was dispatched last; with its last one, the rest of the step.

        Waits while more than one group before it is not done, so that what is gathered in between does not queue behind the whole step.
        Raises as `dispatch` does.
        """
        state = self._usable()
        try:
            step.run.wait()
            self.pools = step.run.advance(self.pools, self._embeddings)
            return step if step.run.left else self._end(step, state)
        except Exception as error:
            raise self.fail(error) from error

    def collect(self, pending: PendingStep | PartialStep) -> StepResult:
        """Wait for a step and read it; one that is not dispatched to its end yet is, first.

        Steps are collected in the order of their dispatch. Raises EngineError when it failed.
        """
        while isinstance(pending, PartialStep):
            pending = self.advance(pending)
        if self._broken is not None:
            raise EngineError(f"plan {pending.plan.id} is lost: {self._broken}")
        try:
            return read(pending)
        except Exception as error:
            raise self.fail(error) from error

    @property
    def _embeddings(self) -> Pools:
        return () if self.media is None else self.media.pools

    def _encode(self, plan: StepPlan) -> jax.Array | None:
        if not plan.encodes:
            return None
        if self.media is None:
            raise PlanError(f"plan {plan.id} encodes {len(plan.encodes)} items; this engine takes no media")
        return self.media.encode(plan.encodes)

    def _guess(self, plan: StepPlan, state: SamplerState) -> tuple[jax.Array | None, SamplerState]:
        """(the draft model's guesses, the state with them among the carried tokens)."""
        if not plan.catch_ups and not plan.drafts:
            return None, state
        if self.draft is None:
            raise PlanError(f"plan {plan.id} drafts {len(plan.drafts)} samples; this engine has no draft model")
        guesses, last_tokens = self.draft.run(plan, self._draws.tables, state.last_tokens)
        return guesses, SamplerState(last_tokens, state.counts, state.in_prompt)

    def _begin(
        self,
        plan: StepPlan,
        batch: ExtendBatch,
        draws: DrawBatch | None,
        state: SamplerState,
        encoded: jax.Array | None,
        guesses: jax.Array | None,
        *media: Pools,
    ) -> PendingStep | PartialStep:
        """The first layer group, or all of them if nobody waits for the KV of the first."""
        self._state = state
        run = self._programs.by_layer_groups(batch.shape, self._params, batch.packed, state.last_tokens, *media)
        step = PartialStep(plan, self, run, batch, draws, encoded, guesses)
        exports = any(export.pool is Pool.KV for export in plan.exports)
        while run.left and not (exports and run.dispatched):
            self.pools = run.advance(self.pools, self._embeddings)
        return step if run.left else self._end(step, state)

    def _end(self, step: PartialStep, state: SamplerState) -> PendingStep:
        return self._launched(step.plan, step.batch, step.draws, state, step.encoded, step.guesses, *step.run.end())

    def _launched(
        self,
        plan: StepPlan,
        batch: ExtendBatch,
        draws: DrawBatch | None,
        state: SamplerState,
        encoded: jax.Array | None,
        guesses: jax.Array | None,
        picked: jax.Array,
        hidden: jax.Array | None,
    ) -> PendingStep:
        """What comes after the layers: draws and scores."""
        words: jax.Array | None = None
        if draws is not None:
            words, state = self._sample(draws, picked, state)
            words.copy_to_host_async()
        self._state = state
        scores, score_rows = self._score(plan, batch, hidden)
        logprobs = () if draws is None else draws.logprobs
        return PendingStep(plan, picked, words, logprobs, scores, score_rows, encoded, guesses)

    def _sample(self, draws: DrawBatch, picked: jax.Array, state: SamplerState) -> tuple[jax.Array, SamplerState]:
        program = self._programs[("sample", draws.variant, draws.size)]
        if draws.variant is Variant.FULL:
            return program(self._head, picked, draws.packed, state)
        words, last_tokens = program(self._head, picked, draws.packed, state.last_tokens)
        return words, SamplerState(last_tokens, state.counts, state.in_prompt)

    def _score(
        self, plan: StepPlan, batch: ExtendBatch, hidden: jax.Array | None
    ) -> tuple[jax.Array | None, tuple[int, ...]]:
        if not batch.shape.prefill_tokens or not any(row.score for row in plan.rows):
            return None, ()
        if hidden is None:
            raise PlanError(f"plan {plan.id} scores prompt tokens; the engine was built without prompt_logprobs")
        targets = np.zeros(batch.shape.prefill_tokens, np.int32)
        score_rows = tuple(first - batch.shape.decode_rows for first in batch.first_token)
        for row, first in zip(plan.rows, score_rows, strict=True):
            if row.score:
                targets[first : first + len(row.score)] = row.score
        scores = self._programs[("score", batch.shape.prefill_tokens)](self._head, hidden, targets)
        scores.copy_to_host_async()
        return scores, score_rows

    def _seat(self, seats: tuple[Seat, ...]) -> None:
        for seat in seats:
            check_seat(seat, self.config.max_num_seqs, self.model.vocab_size)
            self._draws.tables.seat(seat)

    def _seat_state(self, state: SamplerState, seat: Seat) -> SamplerState:
        counts, in_prompt = seat_rows(seat, self.model.vocab_size)
        slot = np.asarray(seat.slot, np.int32)
        counts, in_prompt = self._programs[("seat",)](state.counts, state.in_prompt, slot, counts, in_prompt)
        return SamplerState(state.last_tokens, counts, in_prompt)

    def _copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        for table in copy_tables(copies):
            self.pools = self._programs[("copy",)](self.pools, table)

    # ---- failure -------------------------------------------------------------------------------------------------------------------

    def _usable(self) -> SamplerState:
        if self._broken is not None or self._state is None:
            raise EngineError(f"the engine cannot run plans: {self._broken}; rebuild it")
        return self._state

    def fail(self, error: Exception) -> EngineError:
        """Mark the engine broken and return the error to raise; also for others whose donating call on `pools` failed."""
        self._broken = f"{type(error).__name__}: {error}"
        if isinstance(error, EngineError):
            return error
        return EngineError(f"a device program failed and the KV pool is lost: {self._broken}")

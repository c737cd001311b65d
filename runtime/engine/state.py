"""What the sampler remembers about slots: on the device what drawing changes, on the host what a seat fixes.

The last drawn token of a slot is the input of its next step before the host has seen it, and the penalty counts include it, so both live
on the device. Parameters change only when a sample takes the slot; they are rows of numpy tables and travel with each draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.engine.noise import split_seed
from triptych.runtime.engine.variants import VARIANTS, Variant, least_variant
from triptych.runtime.instance.plan import Seat


@partial(jax.tree_util.register_dataclass, data_fields=("last_tokens", "counts", "in_prompt"), meta_fields=())
@dataclass(frozen=True)
class SamplerState:
    """Per slot: the token drawn last, how often each token was drawn, which tokens the prompt has. Behind the last draws are a draft model's guesses
    (`EngineConfig.carried`)."""

    last_tokens: Int32[Array, "carried"]
    counts: Int32[Array, "slots vocab"]
    in_prompt: Bool[Array, "slots vocab"]


def fresh_state(carried: int, slots: int, vocab: int) -> SamplerState:
    """All slots empty; traced."""
    return SamplerState(
        jnp.zeros((carried,), jnp.int32), jnp.zeros((slots, vocab), jnp.int32), jnp.zeros((slots, vocab), jnp.bool_)
    )


def seat_program(
    counts: Int32[Array, "slots vocab"],
    in_prompt: Bool[Array, "slots vocab"],
    slot: Int32[Array, ""],
    slot_counts: Int32[Array, "vocab"],
    slot_prompt: Bool[Array, "vocab"],
) -> tuple[Int32[Array, "slots vocab"], Bool[Array, "slots vocab"]]:
    """Replace one slot's rows."""
    return counts.at[slot].set(slot_counts), in_prompt.at[slot].set(slot_prompt)


def seat_rows(seat: Seat, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a penalised seat: output counts, prompt membership."""
    counts = np.bincount(np.asarray(seat.outputs, np.int64), minlength=vocab).astype(np.int32)
    in_prompt = np.zeros(vocab, np.bool_)
    in_prompt[np.asarray(seat.prompt, np.int64)] = True
    return counts, in_prompt


class SlotTables:
    """The parameters of each slot, as columns that a step gathers by slot."""

    def __init__(self, slots: int) -> None:
        self.seats: list[Seat | None] = [None] * slots
        self.columns: dict[str, np.ndarray] = {
            **{name: np.zeros(slots, np.float32) for name in ("temperature", "min_p", "top_p", "repetition")},
            **{name: np.zeros(slots, np.float32) for name in ("frequency", "presence")},
            **{name: np.zeros(slots, np.uint32) for name in ("seed_high", "seed_low")},
            **{name: np.zeros(slots, np.int32) for name in ("top_k", "sample")},
        }
        self.sparse: list[tuple[np.ndarray, np.ndarray] | None] = [None] * slots
        self.forbidding: set[int] = set()  # slots whose samples have ids that may not be drawn at some positions
        self._least: dict[int, int] = {}  # of each slot, the place in VARIANTS

    def seat(self, seat: Seat) -> None:
        """Give the slot to a sample."""
        params, slot = seat.params, seat.slot
        high, low = split_seed(params.seed)
        values = {
            "temperature": params.temperature,
            "min_p": params.min_p,
            "top_p": params.top_p,
            "top_k": min(params.top_k, np.iinfo(np.int32).max),
            "repetition": params.repetition_penalty,
            "frequency": params.frequency_penalty,
            "presence": params.presence_penalty,
            "seed_high": high,
            "seed_low": low,
            "sample": seat.sample,
        }
        for name, value in values.items():
            self.columns[name][slot] = value
        self.sparse[slot] = _sparse(params)
        self.seats[slot] = seat
        self._least[slot] = VARIANTS.index(least_variant(params))
        if seat.forbidden or seat.forbidden_first:
            self.forbidding.add(slot)
        else:
            self.forbidding.discard(slot)

    def variant(self, slots: Sequence[int]) -> Variant:
        """The least that serves draws of these slots at which no id is forbidden. Raises PlanError if nobody sits in one."""
        try:
            return VARIANTS[max([self._least[slot] for slot in slots])]
        except KeyError as missing:
            raise _nobody(missing.args[0]) from None

    def seated(self, slot: int) -> Seat:
        """The slot's seat. Raises PlanError if nobody sits there."""
        seat = self.seats[slot] if 0 <= slot < len(self.seats) else None
        if seat is None:
            raise _nobody(slot)
        return seat


def _nobody(slot: int) -> PlanError:
    return PlanError(f"slot {slot} draws, but no seat was given to it")


def _sparse(params: SamplingParams) -> tuple[np.ndarray, np.ndarray] | None:
    if not params.logit_bias:
        return None
    ids, values = zip(*dict(params.logit_bias).items(), strict=True)
    return np.asarray(ids, np.int32), np.asarray(values, np.float32)

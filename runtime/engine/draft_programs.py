"""What a draft model runs: `catch up` reads tokens, `draft` guesses several tokens of each row in one program.

A row of a draft has a sample's last two tokens. The draft model may lack the KV of the first (it was the last of guesses that were all right) and never has that
of the second, so both are computed, as two decode rows of one sequence: a layer writes all keys before it attends. What is drawn behind the second is the
first guess, and each guess is the input of the next round; the last one's KV is left for the next step. All of it is drawn with the seat's temperature and
filters and with the noise of the drawn position, the target's own (noise.py): where the two models agree about the logits, they draw the same token.

Rounds beyond a row's own count, up to the largest of the step, are computed for nothing: past its block table they write to the null page.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from triptych.models.ragged import Ragged
from triptych.models.structure import DecoderStructure, Pools
from triptych.runtime.engine.buckets import ExtendShape
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.extend import build_extend, extend, known_tokens
from triptych.runtime.engine.packing import Field, Packing
from triptych.runtime.engine.sample import drawn, sample_packing
from triptych.runtime.engine.variants import Variant

# A draft needs no more than the filters: bias and forbidden ids, which only the largest sampler knows, cost it a guess now and then.
DRAFT_VARIANTS = (Variant.GREEDY, Variant.FILTERED)


def draft_packing(rows: int, width: int, variant: Variant) -> Packing:
    """The inputs of a draft program. `start` is the KV index of each row's first token, `offset` what its position has more; `before` and `tokens` are its two
    tokens, the second perhaps one that is `carried` on the device; `live` is 0 in padding, else 1; `rounds` is one number: guesses to draw.
    """
    sampling = [field for field in sample_packing(variant, rows).fields if field.name != "position"]
    names = ("live", "start", "offset", "before", "tokens", "carried")
    rest = (Field("page_indices", (rows, width)), Field("rounds", (1,)))
    return Packing((*(Field(name, (rows,)) for name in names), *rest, *sampling))


def build_catch_up(structure: DecoderStructure, shape: ExtendShape, config: EngineConfig) -> Callable[..., Pools]:
    """(params, pools, packed) -> pools: an extend of the draft model whose hidden states nobody needs."""
    run = build_extend(structure, shape, config)

    def read(params: tuple[jax.Array, ...], pools: Pools, packed: Int32[Array, "words"]) -> Pools:
        return run(params, pools, packed, jnp.zeros(config.carried, jnp.int32))[2]

    return read


def build_draft(
    structure: DecoderStructure, rows: int, width: int, variant: Variant, config: EngineConfig
) -> Callable[..., tuple[Int32[Array, "rows guesses"], Int32[Array, "carried"], Pools]]:
    """(params, pools, packed, last_tokens) -> (guesses, last_tokens with the guesses at their places, pools)."""
    packing, size = draft_packing(rows, width, variant), config.page_size
    most = config.speculative_tokens

    def run(
        params: tuple[jax.Array, ...], pools: Pools, packed: Int32[Array, "words"], last_tokens: Int32[Array, "carried"]
    ) -> tuple[Int32[Array, "rows guesses"], Int32[Array, "carried"], Pools]:
        inputs = packing.unpack(packed)
        tables, real, first = inputs["page_indices"], inputs["live"] > 0, inputs["start"]

        def forward(
            tokens: Int32[Array, "copies_rows"], start: Int32[Array, "copies_rows"], pools: Pools
        ) -> tuple[Float[Array, "copies_rows hidden"], Pools]:
            """One token of each row, or several times so many, at KV index `start`."""
            decoder, copies = structure.merge(params), len(tokens) // rows
            table = jnp.tile(tables, (copies, 1))
            pages = jnp.take_along_axis(table, start[:, None] // size, axis=1, mode="fill", fill_value=0)[:, 0]
            batch = Ragged(
                tokens=tokens,
                positions=start + jnp.tile(inputs["offset"], copies),
                write_index=pages * size + start % size,
                kv_lens=jnp.where(jnp.tile(real, copies), jnp.minimum(start + 1, width * size), 0),
                page_indices=table,
                cu_q_lens=jnp.arange(len(tokens) + 1, dtype=jnp.int32),
                decode_rows=len(tokens),
                max_q_len=1,
            )
            return extend(decoder, decoder.embed(tokens), pools, batch, config.attention)

        def guess(hidden: Float[Array, "rows hidden"], start: Int32[Array, "rows"]) -> Int32[Array, "rows"]:
            """What follows the tokens at `start`."""
            return drawn(variant, structure.merge(params).head(hidden), inputs | {"position": start + 1})

        def again(
            number: Int32[Array, ""], so_far: tuple[Int32[Array, "rows guesses"], Pools]
        ) -> tuple[Int32[Array, "rows guesses"], Pools]:
            guesses, pools = so_far
            start = first + 1 + number
            hidden, pools = forward(jnp.take(guesses, number - 1, axis=1), start, pools)
            return guesses.at[:, number].set(guess(hidden, start)), pools

        both = jnp.concatenate((inputs["before"], known_tokens(inputs, last_tokens, config)))
        hidden, pools = forward(both, jnp.concatenate((first, first + 1)), pools)
        guesses = jnp.zeros((rows, most), jnp.int32).at[:, 0].set(guess(hidden[rows:], first + 1))
        guesses, pools = jax.lax.fori_loop(1, inputs["rounds"][0], again, (guesses, pools))
        # `EngineConfig.carried_at`; of padding it is beyond them all.
        places = inputs["slot"][:, None] + config.max_num_seqs * jnp.arange(1, most + 1, dtype=jnp.int32)[None, :]
        return guesses, last_tokens.at[places].set(guesses, mode="drop"), pools

    return run

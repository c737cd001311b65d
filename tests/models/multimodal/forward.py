"""A vision-language model run end to end in the plainest way: one prompt, one prefill, embedding rows put in its place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.decoder import extend_layers
from triptych.models.kv import kv_groups
from triptych.models.multimodal.prompt import MediaSpan
from triptych.models.ragged import Ragged
from triptych.models.vision.packing import Piece, pack, unpack
from triptych.models.vision.structure import LoadedEncoder
from triptych.models.weights.load import LoadedDecoder

PAGE_SIZE = 8


def encode(encoder: LoadedEncoder, pieces: Sequence[Piece], slots: int) -> list[np.ndarray]:
    """The output rows of each piece, all of them in one bucket."""
    packed, ranges = pack(pieces, encoder.config, slots)
    program = jax.jit(lambda params, packed: encoder.merge(params)(packed))
    return unpack(np.asarray(program(encoder.params, packed)), ranges)


def logits(
    decoder: LoadedDecoder,
    tokens: np.ndarray,
    spans: Sequence[MediaSpan],
    rows: Sequence[np.ndarray],
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [tokens, vocab] of a prompt whose spans hold the media's rows. Positions are the indices by default."""
    length = len(tokens)
    slots = np.concatenate([np.arange(span.offset, span.offset + span.count) for span in spans])
    pages = -(-length // PAGE_SIZE)
    batch = Ragged(
        tokens=jnp.asarray(tokens),
        positions=jnp.asarray(np.arange(length) if positions is None else positions),
        write_index=jnp.arange(length) + PAGE_SIZE,
        kv_lens=jnp.asarray([length]),
        page_indices=jnp.arange(1, pages + 1)[None],
        cu_q_lens=jnp.asarray([0, length]),
        decode_rows=0,
        max_q_len=length,
    )
    (group,) = kv_groups(decoder.config, "float32")
    pools = decoder.structure.allocate_pools(group, pages + 1, PAGE_SIZE)

    def program(params, pools, batch, media):
        model = decoder.merge(params)
        x = model.embed(batch.tokens).at[slots].set(media)
        x, _ = extend_layers(model, x, pools, batch)
        return model.head(model.norm(x))

    return np.asarray(jax.jit(program)(decoder.params, pools, batch, jnp.asarray(np.concatenate(rows))))

"""PageMover over pools of codes with scales: both arrive byte for byte in any placement, and nothing else changes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.runtime.engine.test_page_programs import (
    GRANULE,
    HEAD_DIM,
    LAYERS,
    PAGE_SIZE,
    PAGES,
    make_mover,
    move,
    place,
)
from triptych.models.pool_layout import SCALED
from triptych.runtime.core.errors import ChecksumError
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.transfer.checksum import checksum_host
from triptych.runtime.transfer.header import KvGroupHeader, KvHeader, part_bytes
from triptych.runtime.transfer.layout import negotiate

Content = tuple[np.ndarray, np.ndarray]
"""Bytes of codes [layers, 2, pages, page_size, heads, head_dim] and scales [layers, 2, pages, page_size, heads]."""


def content(heads: int, seed: int) -> Content:
    """Any bits: NaNs, infinities and numbers below the normal ones included."""
    rng = np.random.default_rng(seed)
    shape = (LAYERS, 2, PAGES, PAGE_SIZE, heads)
    return rng.integers(0, 256, (*shape, HEAD_DIM), np.uint8), rng.integers(0, 2**32, shape, np.uint32)


def make_pools(mover: PageMover, logical: Content, dtype: str):
    slots = [head for row in mover.layout.slots for head in row]
    sharding = NamedSharding(Mesh(np.array(mover.devices), ("tp",)), PartitionSpec(None, None, "tp"))

    def pool(numbers: np.ndarray, of: str) -> jax.Array:
        spread = np.zeros((*numbers.shape[:2], len(slots), *numbers.shape[3:]), numbers.dtype)
        for slot, head in enumerate(slots):
            if head is not None:
                spread[:, :, slot] = numbers[:, :, head]
        return jax.device_put(spread.view(np.dtype(of)), sharding)

    codes, scales = logical
    return tuple(
        (*(pool(codes[layer, kv], dtype) for kv in range(2)), *(pool(scales[layer, kv], "float32") for kv in range(2)))
        for layer in range(LAYERS)
    )


def held(pools) -> list[list[bytes]]:
    return [[np.asarray(array).tobytes() for array in layer] for layer in pools]


def moved(there: Content, here: Content, source: tuple[int, ...], target: tuple[int, ...]) -> Content:
    """`here` with pages of `there`."""
    after = (here[0].copy(), here[1].copy())
    for new, old in zip(after, there, strict=True):
        new[:, :, list(target)] = old[:, :, list(source)]
    return after


@pytest.mark.parametrize(
    ("heads", "tp_from", "tp_to", "dtype"),
    [
        (8, 1, 2, "int8"),
        (3, 2, 1, "float8_e4m3fn"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((8, 2, 4, "int8"), (8, 4, 1, "float8_e4m3fn"), (3, 1, 2, "int8"), (2, 4, 2, "int8"), (2, 1, 4, "int8"))
        ),
    ],
)  # fmt: skip
def test_codes_and_scales_arrive_byte_equal_in_any_placement(heads: int, tp_from: int, tp_to: int, dtype: str) -> None:
    source, target = (
        make_mover(place(heads, tp), first, dtype, pool_layout=SCALED) for tp, first in ((tp_from, 0), (tp_to, 4))
    )
    g = negotiate(source.layout.head_unit, target.layout.head_unit)
    source.compile(sizes=[g])
    target.compile(sizes=[g])
    there, here = content(heads, 1), content(heads, 2)
    pools_from, pools_to = make_pools(source, there, dtype), make_pools(target, here, dtype)

    gathered = source.gather(pools_from, (5, 2), g)
    pools_to, sums = target.scatter(pools_to, (3, 7), move(source, target, gathered, g), g)
    target.verify(sums, gathered.host_checksums(), g)

    assert held(pools_to) == held(make_pools(target, moved(there, here, (5, 2), (3, 7)), dtype))
    assert held(pools_from) == held(make_pools(source, there, dtype))


def test_a_chunk_has_the_words_of_codes_then_the_scale_and_every_bit_is_in_its_checksum() -> None:
    mover = make_mover(place(4, 2), 0, "int8", ((0, 1), (1, 2)), pool_layout=SCALED)
    mover.compile(sizes=[2])
    codes, scales = content(4, 3)
    pools = make_pools(mover, (codes, scales), "int8")
    gathered = mover.gather(pools, (4, 1), 2, layer_group=1)
    for c, chunk in enumerate(gathered.chunks):
        assert chunk.dtype == mover.chunk_dtype == np.uint32
        assert chunk.shape == mover.chunk_shape(2, 1) == (1, 2, GRANULE, PAGE_SIZE, 2, HEAD_DIM // 4 + 1)
        expected = np.zeros(chunk.shape, np.uint32)
        expected[:, :, :2, ..., :-1] = codes[1:, :, [4, 1]][..., 2 * c : 2 * c + 2, :].copy().view(np.uint32)
        expected[:, :, :2, ..., -1] = scales[1:, :, [4, 1]][..., 2 * c : 2 * c + 2]
        np.testing.assert_array_equal(np.asarray(chunk), expected)
    sums = gathered.host_checksums()
    assert sums == tuple(checksum_host(np.asarray(chunk)) for chunk in gathered.chunks)
    group = KvGroupHeader("self", "full", 4, HEAD_DIM, (0, 1), "float32")
    header = KvHeader("toy", "1", (group,), "int8", PAGE_SIZE, GRANULE, ((0, 1), (1, 2)))
    assert gathered.nbytes == part_bytes(header, 1), "what a staging is said to hold"
    scale = np.array(gathered.chunks[1])
    scale[0, 1, 0, 2, 1, -1] ^= 1
    bad = [gathered.chunks[0], jax.device_put(scale, mover.devices[1])]
    pools, found = mover.scatter(pools, (5, 6), bad, 2, layer_group=1)
    with pytest.raises(ChecksumError, match="chunk 1"):
        mover.verify(found, sums, 2)


def test_heads_that_do_not_fill_words_are_refused() -> None:
    with pytest.raises(ValueError, match="heads of 6 numbers do not fill"):
        SCALED.entry(6, "int8")

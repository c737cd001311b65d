"""PageMover: pages leave one placement and arrive in another byte for byte, and nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.models.pool_layout import APART, COMBINED, PoolLayout
from triptych.runtime.core.errors import ChecksumError
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.engine.page_programs import PageMover
from triptych.runtime.transfer.checksum import checksum_host
from triptych.runtime.transfer.layout import Slots, negotiate

LAYERS, PAGES, PAGE_SIZE, HEAD_DIM, GRANULE = 2, 9, 4, 8, 3


@dataclass(frozen=True)
class Heads:
    """A placement given as a table."""

    table: Slots

    def slots(self) -> Slots:
        return self.table


def place(heads: int, tp: int) -> Heads:
    """The three rules of sharding: plain, replicated, padded."""
    if heads % tp == 0:
        per = heads // tp
        return Heads(tuple(tuple(range(d * per, (d + 1) * per)) for d in range(tp)))
    if tp % heads == 0:
        return Heads(tuple((d * heads // tp,) for d in range(tp)))
    per = -(-heads // tp)
    flat = [*range(heads), *[None] * (per * tp - heads)]
    return Heads(tuple(tuple(flat[d * per : (d + 1) * per]) for d in range(tp)))


def make_mover(layout: Heads, first_device: int, dtype, groups=None, pool_layout: PoolLayout = APART) -> PageMover:
    devices = jax.devices()[first_device : first_device + len(layout.slots())]
    mesh = Mesh(np.array(devices), ("tp",))
    return PageMover(mesh, layout, LAYERS, PAGES, PAGE_SIZE, HEAD_DIM, dtype, GRANULE, groups, pool_layout=pool_layout)


def make_pools(mover: PageMover, logical: np.ndarray):
    """Pools from logical content [layers, 2, pages, page_size, heads, head_dim]; padding slots are zero."""
    spread = np.zeros((*logical.shape[:4], sum(len(row) for row in mover.layout.slots), HEAD_DIM), logical.dtype)
    for slot, head in enumerate(h for row in mover.layout.slots for h in row):
        if head is not None:
            spread[..., slot, :] = logical[..., head, :]
    sharding = NamedSharding(Mesh(np.array(mover.devices), ("tp",)), PartitionSpec(None, None, "tp"))
    return tuple(tuple(jax.device_put(spread[layer, kv], sharding) for kv in range(2)) for layer in range(LAYERS))


def read_pools(pools) -> np.ndarray:
    return np.stack([np.stack([np.asarray(a) for a in pair]) for pair in pools])


def content(heads: int, dtype, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((LAYERS, 2, PAGES, PAGE_SIZE, heads, HEAD_DIM))
    return (values * 50).astype(jnp.dtype(dtype))


def combined(mover: PageMover, pools):
    """The same content as `make_pools` gives, with keys and values of each device's heads in one array a layer."""
    mesh = Mesh(np.array(mover.devices), ("tp",))
    spec = PartitionSpec(None, None, "tp")
    merge = jax.jit(jax.shard_map(COMBINED.merge, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    return tuple((merge(k, v),) for k, v in pools)


def move(source: PageMover, target: PageMover, gathered, g: int):
    return [jax.device_put(gathered.chunks[chunk], device) for chunk, device in target.destinations(g)]


PAIRS = [(1, 2), (2, 1), (2, 4), (4, 2), (4, 1), (1, 4), (2, 2)]
CASES = [
    (heads, p, d, "bfloat16" if heads == 3 else "float32")
    for heads in (8, 3, 2)
    for p, d in PAIRS
    if heads != 3 or (4, 4) != (p, d)
]
CASES += [(8, 2, 4, "bfloat16"), (8, 2, 4, "float16"), (3, 1, 3, "float32"), (3, 3, 2, "float32"), (2, 4, 1, "int8")]


@pytest.mark.parametrize(("heads", "tp_from", "tp_to", "dtype"), CASES)
def test_pages_arrive_byte_equal_in_any_placement(heads, tp_from, tp_to, dtype):
    source, target = make_mover(place(heads, tp_from), 0, dtype), make_mover(place(heads, tp_to), 4, dtype)
    g = negotiate(source.layout.head_unit, target.layout.head_unit)
    source.compile(sizes=[g])
    target.compile(sizes=[g])
    there, here = content(heads, dtype, 1), content(heads, dtype, 2)
    pools_from, pools_to = make_pools(source, there), make_pools(target, here)

    gathered = source.gather(pools_from, (5, 2), g)
    pools_to, sums = target.scatter(pools_to, (3, 7), move(source, target, gathered, g), g)
    target.verify(sums, gathered.host_checksums(), g)

    expected = here.copy()
    expected[:, :, [3, 7]] = there[:, :, [5, 2]]
    assert read_pools(pools_to).tobytes() == read_pools(make_pools(target, expected)).tobytes()
    assert read_pools(pools_from).tobytes() == read_pools(make_pools(source, there)).tobytes()


@pytest.mark.parametrize(("tp_from", "tp_to"), [(1, 2), (2, 1)])
def test_pages_arrive_whichever_way_keys_and_values_lie(tp_from, tp_to):
    """Three heads: in a combined pool four on one device, or on two of which one has a pad."""
    source, target = make_mover(place(3, tp_from), 0, "bfloat16"), make_mover(place(3, tp_to), 4, "bfloat16")
    source_combined = make_mover(place(3, tp_from), 0, "bfloat16", pool_layout=COMBINED)
    target_combined = make_mover(place(3, tp_to), 4, "bfloat16", pool_layout=COMBINED)
    for mover in (source, target, source_combined, target_combined):
        mover.compile(sizes=[1])
    there, here = content(3, "bfloat16", 1), content(3, "bfloat16", 2)
    expected = here.copy()
    expected[:, :, [3, 7]] = there[:, :, [5, 2]]

    apart = source.gather(make_pools(source, there), (5, 2), 1)
    together = source_combined.gather(combined(source, make_pools(source, there)), (5, 2), 1)
    assert apart.host_checksums() == together.host_checksums()
    assert [np.asarray(chunk).tobytes() for chunk in apart.chunks] == [
        np.asarray(chunk).tobytes() for chunk in together.chunks
    ]
    pools, _ = target.scatter(make_pools(target, here), (3, 7), move(source, target, together, 1), 1)
    assert read_pools(pools).tobytes() == read_pools(make_pools(target, expected)).tobytes()
    pools, sums = target_combined.scatter(
        combined(target, make_pools(target, here)), (3, 7), move(source, target, apart, 1), 1
    )
    target_combined.verify(sums, apart.host_checksums(), 1)
    assert read_pools(pools).tobytes() == read_pools(combined(target, make_pools(target, expected))).tobytes()


def test_chunk_is_in_canonical_order_and_padding_pages_are_zero():
    mover = make_mover(place(8, 2), 0, "float32")
    mover.compile(sizes=[2])
    logical = content(8, "float32", 3)
    logical[:, :, 0] = np.nan  # whatever the null page holds must not travel
    gathered = mover.gather(make_pools(mover, logical), (4, 1), 2)
    for c, chunk in enumerate(gathered.chunks):
        expected = np.zeros((LAYERS, 2, GRANULE, PAGE_SIZE, 2, HEAD_DIM), np.float32)
        expected[:, :, :2] = logical[:, :, [4, 1]][..., 2 * c : 2 * c + 2, :]
        assert len(chunk.devices()) == 1
        np.testing.assert_array_equal(np.asarray(chunk), expected)
    assert gathered.host_checksums() == tuple(checksum_host(np.asarray(c)) for c in gathered.chunks)


def test_null_page_is_not_written_by_a_short_granule():
    mover = make_mover(place(2, 1), 0, "float32")
    mover.compile()
    pools = make_pools(mover, content(2, "float32", 4))
    before = read_pools(pools)
    gathered = mover.gather(pools, (1,), 2)
    pools, _ = mover.scatter(pools, (2,), gathered.chunks, 2)
    after = read_pools(pools)
    np.testing.assert_array_equal(after[:, :, 0], before[:, :, 0])
    np.testing.assert_array_equal(after[:, :, 2], before[:, :, 1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_any_flipped_bit_and_any_swap_is_caught(dtype):
    mover = make_mover(place(2, 2), 0, dtype)
    mover.compile()
    pools = make_pools(mover, content(2, dtype, 5))
    gathered = mover.gather(pools, (1, 2, 3), 1)
    expected = gathered.host_checksums()

    signs = np.asarray(gathered.chunks[1]).copy()
    bytes_of = signs.reshape(-1).view(np.uint8)
    bytes_of[signs.itemsize - 1] ^= 0x80  # two sign bits: a linear sum would not see them
    bytes_of[2 * signs.itemsize - 1] ^= 0x80
    swapped = np.ascontiguousarray(np.asarray(gathered.chunks[1])[:, ::-1])  # k and v exchanged
    for bad in (signs, swapped):
        arrays = [gathered.chunks[0], jax.device_put(bad, mover.devices[1])]
        pools, sums = mover.scatter(pools, (4, 5, 6), arrays, 1)
        with pytest.raises(ChecksumError, match="chunk 1"):
            mover.verify(sums, expected, 1)


def test_layer_groups_move_their_own_layers_only_and_share_programs():
    mover = make_mover(place(2, 2), 0, "float32", ((0, 1), (1, 2)))
    assert mover.compile() == 2
    here = content(2, "float32", 6)
    pools = make_pools(mover, here)
    gathered = mover.gather(pools, (1,), 1, layer_group=1)
    pools, sums = mover.scatter(pools, (2,), gathered.chunks, 1, layer_group=1)
    mover.verify(sums, gathered.host_checksums(), 1)
    expected = here.copy()
    expected[1, :, 2] = here[1, :, 1]
    np.testing.assert_array_equal(read_pools(pools), expected)


def test_scatter_updates_the_pools_in_place():
    mover = make_mover(place(2, 1), 0, "float32")
    mover.compile()
    analysis = mover._scatter[2, LAYERS].memory_analysis()
    pool_bytes = 2 * LAYERS * PAGES * PAGE_SIZE * 2 * HEAD_DIM * 4
    assert analysis.alias_size_in_bytes >= pool_bytes


def test_nothing_compiles_after_compile():
    mover = make_mover(place(3, 2), 0, "bfloat16")
    mover.compile()
    pools = make_pools(mover, content(3, "bfloat16", 7))
    with no_compilation():
        for _ in range(2):
            gathered = mover.gather(pools, (1, 2), 1)
            arrays = [jax.device_put(gathered.chunks[chunk], device) for chunk, device in mover.destinations(1)]
            pools, sums = mover.scatter(pools, (3, 4), arrays, 1)
            mover.verify(sums, gathered.host_checksums(), 1)


def test_pages_outside_the_pool_are_refused_before_anything_is_dispatched():
    mover = make_mover(place(2, 1), 0, "float32")
    mover.compile()
    pools = make_pools(mover, content(2, "float32", 8))
    for pages in ((), (0,), (PAGES,), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="pages"):
            mover.gather(pools, pages, 2)
    with pytest.raises(ValueError, match="no program for chunks of 5 heads"):
        mover._program(mover._gather, 5, LAYERS)

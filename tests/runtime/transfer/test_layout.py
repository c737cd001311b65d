"""Chunks: whole on one device on both sides, whatever the two placements are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.runtime.transfer.layout import ChunkLayout, negotiate
from triptych.sharding.heads import IncompatibleTpError, fitting_tp_sizes, head_layout


@st.composite
def placements_of_one_model(draw) -> tuple[ChunkLayout, ChunkLayout]:
    kv_heads = draw(st.integers(1, 12))
    heads = kv_heads * draw(st.integers(1, 4))
    sizes = fitting_tp_sizes(heads, kv_heads)
    first, second = (ChunkLayout(head_layout(heads, kv_heads, draw(st.sampled_from(sizes))).slots()) for _ in range(2))
    return first, second


@given(placements_of_one_model())
def test_every_chunk_is_whole_on_a_device_on_both_sides_and_reaches_every_holder(pair):
    g = negotiate(pair[0].head_unit, pair[1].head_unit)
    for layout in pair:
        assert [h.chunk for h in layout.senders(g)] == list(range(layout.heads // g))
        filled = [[None] * layout.heads_per_device for _ in layout.slots]
        for h in layout.holders(g):
            for i in range(g):
                filled[h.device][h.block * g + i] = h.chunk * g + i
        assert tuple(tuple(row) for row in filled) == layout.slots, "chunks fill exactly the slots that are not padding"


@pytest.mark.parametrize(
    ("kv_heads", "tp", "unit"), [(8, 1, 8), (8, 2, 4), (8, 8, 1), (2, 4, 1), (3, 1, 3), (3, 2, 1), (6, 4, 2)]
)
def test_head_unit(kv_heads, tp, unit):
    assert ChunkLayout(head_layout(kv_heads * 2, kv_heads, tp).slots()).head_unit == unit


def test_plain_placements_use_the_largest_common_chunk():
    whole, half, quarter = (ChunkLayout(head_layout(8, 8, tp).slots()) for tp in (1, 2, 4))
    assert negotiate(whole.head_unit, half.head_unit) == 4
    assert negotiate(half.head_unit, quarter.head_unit) == 2
    assert half.chunk_sizes() == (1, 2, 4)


def test_impossible_chunks_and_placements_are_refused():
    with pytest.raises(ValueError, match=r"possible sizes: \(1, 2, 4\)"):
        ChunkLayout(head_layout(8, 8, 2).slots()).blocks(3)
    for slots in ((), ((),), ((0, 1), (2,)), ((0,), (2,))):
        with pytest.raises(ValueError, match="KV head"):
            ChunkLayout(slots)
    with pytest.raises(ValueError, match="positive"):
        negotiate(0, 4)
    with pytest.raises(IncompatibleTpError):
        head_layout(9, 3, 8)

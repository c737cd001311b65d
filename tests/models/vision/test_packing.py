"""Buckets of patches: where everything lies, what refuses to fit, and that outputs come back in order."""

from dataclasses import replace

import numpy as np
import pytest

from triptych.models.errors import MediaShapeError
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.vision.config import ConnectorConfig, VisionConfig
from triptych.models.vision.packing import Grid, Piece, empty, pack, unpack

CLIP = VLM_PRESETS["toy-vlm"].vision
DINO = replace(CLIP, family="dinov2", resize_positions=True, connector=None)
QWEN = VisionConfig(
    family="qwen2_5_vl",
    hidden_size=16,
    stored_layers=2,
    feature_layers=(2,),
    num_heads=2,
    intermediate_size=8,
    patch_size=2,
    activation="silu",
    rope_theta=10000.0,
    window=4,
    full_layers=(1,),
    connector=ConnectorConfig(outputs=8, hidden_size=8, merge=2),
)


def piece(config: VisionConfig, rows: int, columns: int, first: int = 0) -> Piece:
    """Every patch filled with its number in raster order."""
    count = rows * columns
    numbers = np.arange(first, first + count, dtype=np.uint8)
    return Piece(np.repeat(numbers[:, None], config.patch_dim, axis=1), Grid(rows, columns))


def test_pieces_lie_one_after_another_with_their_class_tokens_first() -> None:
    packed, ranges = pack([piece(CLIP, 4, 4), piece(CLIP, 4, 4, 50)], CLIP, 40)
    assert np.flatnonzero(packed.is_class).tolist() == [0, 17]
    assert packed.patches[1:17, 0].tolist() == list(range(16))
    assert packed.patches[18:34, 0].tolist() == list(range(50, 66))
    assert np.unique(packed.spans[:17], axis=0).tolist() == [[0, 17]]
    assert np.unique(packed.spans[17:34], axis=0).tolist() == [[17, 34]]
    assert not packed.spans[34:].any()
    assert [(part.start, part.stop) for part in ranges] == [(0, 16), (16, 32)]
    assert packed.output_slots[:32, 0].tolist() == [*range(1, 17), *range(18, 34)]
    # The class token has entry 0 of the table, patch i has i + 1.
    assert packed.position_indices[17:34, 0].tolist() == list(range(17))


def test_every_bucket_of_a_size_has_the_same_shapes() -> None:
    for config, pieces in ((CLIP, [piece(CLIP, 4, 4)]), (DINO, [piece(DINO, 3, 7)]), (QWEN, [piece(QWEN, 6, 2)])):
        packed, _ = pack(pieces, config, 64)
        for ours, blank in zip(packed, empty(config, 64), strict=True):
            assert (ours.shape, ours.dtype) == (blank.shape, blank.dtype)


def test_windows_are_contiguous_and_outputs_are_in_raster_order_again() -> None:
    grid = piece(QWEN, 6, 10)
    packed, ranges = pack([piece(QWEN, 2, 2, 200), grid], QWEN, 80)
    rows, columns = packed.grid_positions[4:64].T
    numbers = packed.patches[4:64, 0]
    assert (numbers == rows * 10 + columns).all()
    starts, stops = packed.window_spans[4:64].T
    for slot in range(4, 64):
        inside = slice(starts[slot - 4] - 4, stops[slot - 4] - 4)
        own = (rows // 4 == rows[slot - 4] // 4) & (columns // 4 == columns[slot - 4] // 4)
        assert np.flatnonzero(own).tolist() == list(range(inside.start, inside.stop))
    merged = packed.patches[packed.output_slots[ranges[1].start : ranges[1].stop], 0]
    assert merged[:2].tolist() == [[0, 1, 10, 11], [2, 3, 12, 13]]
    assert merged[5].tolist() == [20, 21, 30, 31]
    assert len(merged) == 15


def test_unpacking_gives_each_piece_its_rows() -> None:
    _, ranges = pack([piece(QWEN, 2, 2), piece(QWEN, 4, 2), piece(QWEN, 2, 4)], QWEN, 20)
    outputs = np.arange(5)
    assert [part.tolist() for part in unpack(outputs, ranges)] == [[0], [1, 2], [3, 4]]


def test_outputs_fit_whatever_fits_into_the_slots() -> None:
    for config, grid in ((CLIP, (4, 4)), (QWEN, (2, 2)), (replace(CLIP, output="all"), (4, 4))):
        slots = config.slots(*grid) * 3
        assert config.output_bound(slots) >= 3 * config.output_rows(*grid)
    assert replace(CLIP, output="class").output_rows(4, 4) == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MediaShapeError, match="need 34 slots, the bucket has 33"):
        pack([piece(CLIP, 4, 4)] * 2, CLIP, 33)
    with pytest.raises(MediaShapeError, match="takes 4 x 4 patches, got 4 x 5"):
        pack([piece(CLIP, 4, 5)], CLIP, 33)
    with pytest.raises(MediaShapeError, match=r"needs patches \[4, 12\]"):
        pack([Piece(np.zeros((4, 9), np.uint8), Grid(2, 2))], QWEN, 33)
    with pytest.raises(MediaShapeError, match="cannot be merged"):
        pack([piece(QWEN, 3, 2)], QWEN, 33)

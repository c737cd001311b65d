"""One compiled program a bucket: whatever lies in it, each piece gets the rows that it gets alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.models.vision.test_packing import DINO, QWEN
from triptych.models.vision.config import ConnectorConfig, VisionConfig
from triptych.models.vision.packing import Grid, Piece, pack, unpack
from triptych.models.weights.vision import dummy_encoder
from triptych.sharding.mesh import make_mesh

SLOTS = 160
MERGED = replace(DINO, connector=ConnectorConfig(outputs=8, hidden_size=16, merge=2, merged_norm="layer"))


def random_pieces(config: VisionConfig, rng: np.random.Generator, slots: int) -> list[Piece]:
    """Pieces of random grids until the next one does not fit."""
    pieces: list[Piece] = []
    while True:
        rows, columns = (int(side) * 2 for side in rng.integers(1, 6, 2))
        slots -= config.slots(rows, columns)
        if slots < 0:
            return pieces
        patches = rng.integers(0, 256, (rows * columns, config.patch_dim), dtype=np.uint8)
        pieces.append(Piece(patches, Grid(rows, columns)))


@pytest.mark.parametrize("config", [QWEN, DINO, MERGED], ids=["windows", "resized positions", "merged"])
@pytest.mark.parametrize("tp", [1, 4])
def test_neighbours_and_padding_do_not_matter(config: VisionConfig, tp: int) -> None:
    encoder = dummy_encoder(config, make_mesh(jax.devices()[:tp], tp), "float32")
    traced: list[VisionConfig] = []

    @jax.jit
    def program(params, packed):
        traced.append(config)
        return encoder.merge(params)(packed)

    def encode(pieces: list[Piece]) -> list[np.ndarray]:
        packed, ranges = pack(pieces, config, SLOTS)
        return unpack(np.asarray(program(encoder.params, packed)), ranges)

    rng = np.random.default_rng(tp)
    for _ in range(3):
        pieces = random_pieces(config, rng, SLOTS)
        assert len(pieces) > 1
        for piece, rows in zip(pieces, encode(pieces), strict=True):
            assert rows.shape == (config.output_rows(piece.grid.rows, piece.grid.columns), config.output_size)
            (alone,) = encode([piece])
            np.testing.assert_allclose(rows, alone, atol=1e-5, rtol=0)
    assert len(traced) == 1


def test_layers_that_are_full_see_other_windows_and_the_others_do_not() -> None:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (8 * 4, QWEN.patch_dim), dtype=np.uint8)
    changed = patches.copy()
    changed[-1] = 255 - changed[-1]  # the last patch: the second window of two
    mesh = make_mesh(jax.devices()[:1], 1)
    seen = {}
    for full_layers in ((), (1,)):
        config = replace(QWEN, full_layers=full_layers)
        encoder = dummy_encoder(config, mesh, "float32")
        program = jax.jit(lambda params, packed, encoder=encoder: encoder.merge(params)(packed))
        packed = [pack([Piece(one, Grid(8, 4))], config, 40)[0] for one in (patches, changed)]
        before, after = (np.asarray(program(encoder.params, one))[:8] for one in packed)
        difference = np.abs(before - after).max(axis=1)
        assert difference[4:].min() > 1e-4  # the same window
        seen[full_layers] = difference[:4].max()
    assert seen[()] == 0
    assert seen[1,] > 1e-4

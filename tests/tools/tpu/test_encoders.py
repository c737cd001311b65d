"""The device programs of the encode stage go through the real TPU compiler and fit the chips (docs/design.md, Where it runs).

In a process of its own each: libtpu is loaded once a process, and leaves its mark on the environment.
"""

from __future__ import annotations

import pytest

from tests.tools.tpu.checking import NO_COMPILER, compile_check
from triptych.sharding.tpu import TARGETS
from triptych.tools.tpu.models import PUBLISHED, PublishedSpeech, PublishedVision

pytestmark = NO_COMPILER
SLOTS = 128  # two windows
MOVES = {"media", "inject", "gather media heads=2 layers=1", "scatter media heads=2 layers=1"}


def test_an_encoder_with_windows_compiles_for_eight_chips() -> None:
    """Two layers of Qwen2.5-VL's encoder, one with windows and one without, its connector, and everything that moves embeddings."""
    model = PUBLISHED["qwen2.5-vl-7b"].shallow(2)
    assert isinstance(model, PublishedVision)
    rows = {row["name"]: row for row in compile_check("v6e:2x4", model.name, "--layers=2", f"--slots={SLOTS}")}
    assert rows.keys() >= MOVES | {f"encode {SLOTS}"}
    assert all(0 < row["peak_bytes"] < row["memory_bytes"] for row in rows.values())
    encode, weights = rows[f"encode {SLOTS}"], 2 * model.config.parameter_count()
    assert weights / 8 < encode["argument_bytes"] < weights, "each chip holds its share of the layers"
    # A weight is multiplied once a slot, those of the connector once in four; a chip computes its share of the layers and all of the connector.
    assert weights * SLOTS / 8 / 4 < encode["flops"] < weights * SLOTS


@pytest.mark.slow
@pytest.mark.limit(2400)
@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("target", TARGETS)
def test_every_encoder_fits_every_target_at_full_depth(target: str, model: str) -> None:
    rows = compile_check(target, model, limit=2300)
    names = {row["name"] for row in rows}
    published = PUBLISHED[model]
    if isinstance(published, PublishedSpeech):
        assert names == {"encode + cross KV"}
    else:
        assert {"media", "inject", f"encode {published.slots}"} <= names
        assert any(name.startswith("gather") for name in names) and any(name.startswith("scatter") for name in names)
    assert all(0 < row["peak_bytes"] < row["memory_bytes"] for row in rows)

"""The shapes that are compiled for TPUs are those of the published models."""

from __future__ import annotations

import pytest

from triptych.tools.tpu.models import PUBLISHED, PublishedSpeech, PublishedVision


@pytest.mark.parametrize(
    ("name", "millions", "slots"),
    # What their cards say of the encoders, plus the connector: 304 - one layer + 21, 304 + 27, 632 + 45.
    [("llava-1.5-7b", 312, 577), ("internvl3-8b", 332, 1025), ("qwen2.5-vl-7b", 676, 65536)],
)
def test_vision_encoders_have_their_parameters(name: str, millions: int, slots: int) -> None:
    model = PUBLISHED[name]
    assert isinstance(model, PublishedVision)
    assert model.config.parameter_count() / 1e6 == pytest.approx(millions, rel=0.02)
    assert slots <= model.slots, "the largest picture fits the largest bucket"


def test_fewer_layers_keep_every_width_and_both_kinds_of_attention() -> None:
    for model in PUBLISHED.values():
        shallow = model.shallow(2)
        if isinstance(shallow, PublishedSpeech):
            assert isinstance(model, PublishedSpeech)
            assert (shallow.config.encoder_layers, shallow.config.decoder_layers) == (2, 2)
            assert shallow.config.hidden_size == model.config.hidden_size
            continue
        assert isinstance(model, PublishedVision) and shallow.config.num_layers == 2
        for field in ("hidden_size", "num_heads", "intermediate_size", "patch_dim", "output_size", "window"):
            assert getattr(shallow.config, field) == getattr(model.config, field)
        assert (shallow.config.window is None) == (not shallow.config.full_layers)

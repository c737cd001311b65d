"""Which media pool and encoder an instance gets, and what all instances of a model declare alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.worker.media_bench import TOY
from triptych.models.config import PRESETS
from triptych.models.hub.bundle import ModelBundle
from triptych.models.hub.resolve import ModelKind, ResolvedModel
from triptych.models.multimodal.plans import DynamicProcessing
from triptych.models.weights.dummy import DummySource
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.worker import media_parts
from triptych.runtime.worker.build import compatibility
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.media_parts import WorkerModel

TEXT = PRESETS["toy"]
BUNDLE = ModelBundle(TEXT, DummySource(TEXT), None, None, "r1")
RESOLVED = ResolvedModel(ModelKind.PRESET, "dummy:toy-vlm", Path("toy-vlm"), "r1")
VLM, PLAIN = WorkerModel(RESOLVED, BUNDLE, TOY), WorkerModel(RESOLVED, BUNDLE)
E, P, D = Role.ENCODE, Role.PREFILL, Role.DECODE


def plan(*roles: Role, switchable: tuple[Role, ...] = ()) -> InstancePlan:
    return InstancePlan("i", frozenset(roles), switchable=frozenset(switchable))


def config(**changes: Any) -> WorkerConfig:
    return WorkerConfig("w", "s:1", (plan(P),), "dummy:toy-vlm", Path("unused"), "toy", **changes)


@pytest.mark.parametrize(
    ("instance", "model", "changes", "expected"),
    [
        (plan(P), VLM, {}, 4 * 7 + 1),  # four prompts of 100 tokens
        (plan(E), VLM, {"max_num_seqs": 2}, 2 * 7 + 1),
        (plan(E, P, D), VLM, {"media_pages": 5}, 5),
        (plan(D), VLM, {"media_pages": 5}, 0),
        (plan(D, switchable=(P,)), VLM, {"media_pages": 5}, 5),
        (plan(P, D), VLM, {"media_pages": 0}, 0),
        (plan(P, D), PLAIN, {}, 0),
    ],
)
def test_pages_of_the_media_pool(instance: InstancePlan, model: WorkerModel, changes: Any, expected: int) -> None:
    assert media_parts.media_pages(config(**changes), instance, model, 100) == expected


@pytest.mark.parametrize(("model", "changes"), [(PLAIN, {}), (VLM, {"media_pages": 0})])
def test_an_encode_role_without_media_is_refused(model: WorkerModel, changes: Any) -> None:
    for instance in (plan(E), plan(P, D, switchable=(E,))):
        with pytest.raises(ConfigError, match="takes no media"):
            media_parts.media_pages(config(**changes), instance, model, 100)


def test_the_largest_program_holds_the_largest_item() -> None:
    assert media_parts.encode_patches(config(), plan(E), VLM) == media_parts.ENCODE_PATCHES
    assert media_parts.encode_patches(config(encode_patches=20), plan(E), VLM) == 20
    assert media_parts.encode_patches(config(), plan(P), VLM) == 0
    large = replace(TOY, processing=DynamicProcessing(max_pixels=5000 * TOY.vision.patch_size**2))
    assert media_parts.encode_patches(config(), plan(E), replace(VLM, multimodal=large)) == 5001


def test_instances_of_a_model_declare_the_same_layout_and_text_models_none() -> None:
    assert compatibility(config(), PLAIN).media_layout == compatibility(config(media_pages=0), VLM).media_layout == ""
    layout = compatibility(config(), VLM).media_layout
    assert layout and layout == compatibility(config(media_pages=7, encode_patches=3), VLM).media_layout
    others = [config(page_size=8), config(export_pages=2), config(dtype="bfloat16")]
    assert layout not in {compatibility(other, VLM).media_layout for other in others}

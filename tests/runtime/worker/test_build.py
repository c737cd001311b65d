"""What a worker opens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from triptych.models.config import ModelConfig
from triptych.models.kv import CODE_BYTES, kv_groups
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.worker.build import compatibility, kv_header, open_worker_model
from triptych.runtime.worker.config import InstancePlan, WorkerConfig

GOLDENS = Path(__file__).parents[2] / "models" / "multimodal" / "goldens"


def _config(folder: Path) -> WorkerConfig:
    plan = InstancePlan("pd-0", frozenset({Role.PREFILL, Role.DECODE}))
    return WorkerConfig(
        name="w", scheduler="s", instances=(plan,), model=str(folder), cache=Path("/nonexistent"), served_model_name="m"
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_model_that_sees_is_opened(family: str) -> None:
    model = open_worker_model(_config(GOLDENS / family))
    assert model.multimodal is not None and model.bundle.config is not None


def test_workers_that_cut_layers_otherwise_are_told_apart_before_anything_moves() -> None:
    """By the scheduler at registration, and by the header; a group of all layers is no cut."""
    whole = replace(_config(Path("dummy:toy")), model="dummy:toy")
    model = open_worker_model(whole)
    assert isinstance(model.bundle.config, ModelConfig)
    (group,) = kv_groups(model.bundle.config, "float32")
    same, cut = replace(whole, kv_layer_groups=2), replace(whole, kv_layer_groups=1)
    assert compatibility(whole, model) == compatibility(same, model)
    (difference,) = compatibility(whole, model).difference(compatibility(cut, model))
    assert difference.startswith("kv_layout") and "offers of 1 layers" in difference
    headers = [kv_header(config, model.bundle, group) for config in (whole, same, cut)]
    assert headers[0] == headers[1] and headers[0].digest() != headers[2].digest()
    assert headers[2].layer_groups == ((0, 1), (1, 2))


def test_workers_with_other_weights_are_told_apart_before_anything_moves() -> None:
    whole = replace(_config(Path("dummy:toy")), model="dummy:toy")
    model = open_worker_model(whole)
    assert isinstance(model.bundle.config, ModelConfig)
    (group,) = kv_groups(model.bundle.config, "float32")
    int8 = replace(whole, weights="int8")
    (difference,) = compatibility(whole, model).difference(compatibility(int8, model))
    assert difference.startswith("revision") and "/float32/int8" in difference
    assert kv_header(whole, model.bundle, group).digest() != kv_header(int8, model.bundle, group).digest()


def test_random_weights_of_another_kind_of_device_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators make other random numbers than CPUs read; a checkpoint's are the same everywhere."""
    preset, folder = (
        replace(_config(Path(model)), model=model)
        for model in ("dummy:toy", str(GOLDENS.parents[1] / "goldens" / "llama2"))
    )
    model, checkpoint = open_worker_model(preset), open_worker_model(folder)
    on_cpu = [compatibility(preset, model), compatibility(folder, checkpoint)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (difference,) = on_cpu[0].difference(compatibility(preset, model))
    assert difference.startswith("revision") and "made on the device" in difference
    assert on_cpu[1] == compatibility(folder, checkpoint)


def test_workers_that_keep_kv_otherwise_are_told_apart_before_anything_moves() -> None:
    """Those with codes from those without, at registration; kernels and models that cannot have them are refused."""
    whole = replace(_config(Path("dummy:toy")), model="dummy:toy")
    model = open_worker_model(whole)
    for dtype in CODE_BYTES:
        (difference,) = compatibility(replace(whole, kv_dtype=dtype), model).difference(compatibility(whole, model))
        assert difference == f"kv_dtype: {dtype!r} != 'float32'"
    with pytest.raises(ConfigError, match="attention 'tpu' does not read KV in int8"):
        replace(whole, kv_dtype="int8", attention="tpu")
    with pytest.raises(ConfigError, match="KV dtype is int8; speech models keep KV in float32"):
        open_worker_model(replace(whole, model="dummy:toy-whisper", kv_dtype="int8"))


def test_unknown_weights_and_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights 'int5' are unknown; known: auto, int8"):
        replace(_config(Path("dummy:toy")), weights="int5")
    with pytest.raises(ConfigError, match="attention 'abacus' is unknown; known: auto, reference, tpu"):
        replace(_config(Path("dummy:toy")), attention="abacus")


@pytest.mark.parametrize(("name", "value"), [("weights", "int8"), ("attention", "gpu")])
def test_what_speech_models_have_no_choice_of_is_refused_and_not_passed_over(name: str, value: str) -> None:
    asked: dict[str, Any] = {"model": "dummy:toy-whisper", name: value}
    with pytest.raises(ConfigError, match=f"{name} is '{value}'; speech models are served with"):
        open_worker_model(replace(_config(Path("dummy:toy-whisper")), **asked))

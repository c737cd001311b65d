"""What a worker refuses to open."""

from pathlib import Path

import pytest

from triptych.models.errors import UnsupportedModelError
from triptych.runtime.core.instance import Role
from triptych.runtime.worker.build import open_worker_model
from triptych.runtime.worker.config import InstancePlan, WorkerConfig

GOLDENS = Path(__file__).parents[2] / "models" / "multimodal" / "goldens"


def _config(folder: Path) -> WorkerConfig:
    plan = InstancePlan("pd-0", frozenset({Role.PREFILL, Role.DECODE}))
    return WorkerConfig(
        name="w", scheduler="s", instances=(plan,), model=str(folder), cache=Path("/nonexistent"), served_model_name="m"
    )


def test_positions_of_three_parts_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="M-RoPE"):
        open_worker_model(_config(GOLDENS / "qwen2_5_vl"))


def test_a_model_that_sees_is_opened() -> None:
    model = open_worker_model(_config(GOLDENS / "llava"))
    assert model.multimodal is not None and model.bundle.config is not None

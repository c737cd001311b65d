"""What a worker opens."""

from pathlib import Path

import pytest

from triptych.runtime.core.instance import Role
from triptych.runtime.worker.build import open_worker_model
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

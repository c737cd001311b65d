"""Which kernel `auto` is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from triptych.models.kernels.auto import kernel_for

H100: Any = SimpleNamespace(platform="gpu", compute_capability="9.0")
A100: Any = SimpleNamespace(platform="gpu", compute_capability="8.0")
AMD: Any = SimpleNamespace(platform="gpu", compute_capability="gfx942")
TPU: Any = SimpleNamespace(platform="tpu")


@pytest.mark.parametrize(
    ("device", "head_dim", "page_size", "kernel"),
    [
        (H100, 128, 16, "gpu"),
        (H100, 64, 8, "gpu"),
        (H100, 96, 16, "reference"),
        (H100, 128, 24, "reference"),
        (A100, 128, 16, "reference"),
        (AMD, 128, 16, "reference"),
        (TPU, 128, 16, "reference"),
        (jax.devices()[0], 128, 16, "reference"),
    ],
)
def test_auto_is_what_the_device_has_a_kernel_for(device: Any, head_dim: int, page_size: int, kernel: str) -> None:
    assert kernel_for("auto", device, page_size, head_dim) == kernel


def test_a_kernel_that_was_named_stays() -> None:
    assert kernel_for("gpu-mosaic", TPU, 3, 96) == "gpu-mosaic"


def test_models_of_one_engine_have_one_kernel() -> None:
    assert [kernel_for("auto", H100, 16, *heads) for heads in ((128, 64), (128, 96))] == ["gpu", "reference"]

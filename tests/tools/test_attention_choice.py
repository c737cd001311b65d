"""`--attention` reaches the engine of each worker; a kernel that is not for the devices there is refused by name."""

from __future__ import annotations

import pytest

from triptych.models.kernels.choice import KERNELS
from triptych.models.kernels.names import PLATFORMS
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.topology import parse
from triptych.runtime.worker.config import WorkerConfig
from triptych.tools.config import ServeConfig
from triptych.tools.worker import worker_config


def worker(attention: str, platform: str) -> WorkerConfig:
    return worker_config(ServeConfig(attention=attention), parse("1P1D").instances(), "w", "s", "127.0.0.1", platform)


def test_every_kernel_can_be_chosen() -> None:
    assert set(PLATFORMS) == set(KERNELS)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("attention", PLATFORMS)
def test_a_kernel_is_taken_where_it_is_for(attention: str, platform: str) -> None:
    if PLATFORMS[attention] in (None, platform):
        assert worker(attention, platform).attention == attention
    else:
        with pytest.raises(
            ConfigError, match=f"attention '{attention}' is for {PLATFORMS[attention]}, the devices here are {platform}"
        ):
            worker(attention, platform)


@pytest.mark.parametrize(
    ("named", "kept"), [("auto", "bfloat16"), ("float32", "float32"), ("int8", "int8"), ("fp8", "float8_e4m3fn")]
)
def test_the_kv_dtype_reaches_workers_as_numpy_names_it(named: str, kept: str) -> None:
    config = ServeConfig(kv_cache_dtype=named)
    assert worker_config(config, parse("1P1D").instances(), "w", "s", "127.0.0.1", "gpu").kv_dtype == kept

"""How many layers an offer has, from flags and from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.topology import parse
from triptych.tools.config import ServeConfig
from triptych.tools.kv_times import layers_per_offer
from triptych.tools.worker import worker_config

TIMES = {"layer_seconds": 0.01, "handshake_seconds": 0.02, "layer_bytes": 2e6, "bytes_per_second": 1e9}


def auto(tmp_path: Path, times: dict[str, Any], layers: int = 30) -> ServeConfig:
    path = tmp_path / "overlap.json"
    path.write_text(json.dumps({"times": times, "layers": layers, "rows": []}))
    return ServeConfig(kv_layer_groups="auto", kv_times=str(path))


def test_a_number_or_all_is_taken_as_it_is() -> None:
    assert layers_per_offer(ServeConfig()) is None
    assert layers_per_offer(ServeConfig(kv_layer_groups="4")) == 4


def test_auto_takes_the_smallest_group_that_hides_its_offer(tmp_path: Path) -> None:
    config = auto(tmp_path, TIMES)
    assert layers_per_offer(config) == 3
    worker = worker_config(config, parse("1P1D").instances(), "w", "s", "127.0.0.1", "cpu")
    assert worker.kv_layer_groups == 3


def test_auto_takes_all_layers_where_none_hides(tmp_path: Path) -> None:
    assert layers_per_offer(auto(tmp_path, TIMES | {"handshake_seconds": 9.0})) is None


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1.5"])
def test_other_values_are_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match="kv_layer_groups"):
        ServeConfig(kv_layer_groups=value)


def test_auto_without_times_is_refused() -> None:
    with pytest.raises(ConfigError, match="bench-overlap"):
        ServeConfig(kv_layer_groups="auto")


@pytest.mark.parametrize(
    "times", [{}, {"layer_seconds": 1}, TIMES | {"more": 1}, TIMES | {"layer_bytes": "x"}, TIMES | {"layer_bytes": -1}]
)
def test_times_that_cannot_be_read_are_refused(tmp_path: Path, times: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"overlap\.json|layer_bytes"):
        layers_per_offer(auto(tmp_path, times))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        layers_per_offer(ServeConfig(kv_layer_groups="auto", kv_times=str(tmp_path / "none.json")))

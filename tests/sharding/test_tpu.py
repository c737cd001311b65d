"""TPU targets that are not there."""

from __future__ import annotations

import pytest

from triptych.sharding import tpu
from triptych.sharding.tpu import TARGETS, TpuCompilerError, tpu_mesh


def test_names_say_how_many_chips() -> None:
    for name, target in TARGETS.items():
        chips = 1
        for side in name.split(":")[1].split("x"):
            chips *= int(side)
        assert (target.name, target.chips) == (name, chips)


def test_what_stands_in_the_way_of_the_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the plugin raises: none is installed, or this one knows no such topology."""

    def fail(name: str, platform: str) -> None:
        raise RuntimeError(f"no {platform} plugin")

    monkeypatch.setattr(tpu.topologies, "get_topology_desc", fail)
    with pytest.raises(TpuCompilerError, match=r"v5e:2x2: no tpu plugin; install libtpu"):
        tpu_mesh(TARGETS["v5e:2x2"])

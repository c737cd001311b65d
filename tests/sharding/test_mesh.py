"""Meshes take exactly the devices they are given; device subsets are read strictly."""

import jax
import pytest
from jax.sharding import PartitionSpec

from triptych.sharding.mesh import DeviceSubsetError, make_mesh, parse_devices
from triptych.sharding.rules import PARAMETER_AXES, RULES, ShardingRules


def test_a_mesh_keeps_the_order_of_its_devices() -> None:
    devices = jax.devices()[5:3:-1]
    mesh = make_mesh(devices, 2)
    assert list(mesh.devices.flat) == devices and mesh.shape == {"tp": 2}


def test_a_mesh_needs_as_many_devices_as_tp() -> None:
    with pytest.raises(DeviceSubsetError, match="tp=4 needs 4 devices, got 2"):
        make_mesh(jax.devices()[:2], 4)


@pytest.mark.parametrize(("text", "expected"), [("0-3", (0, 1, 2, 3)), ("2,0", (2, 0)), ("4-5, 7", (4, 5, 7))])
def test_device_subsets_are_indices_and_ranges(text: str, expected: tuple[int, ...]) -> None:
    assert parse_devices(text, 8) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither"),
        ("a", "neither"),
        ("3-", "neither"),
        ("3-1", "backwards"),
        ("1,0-2", "twice"),
        ("8", "8 devices"),
    ],
)
def test_malformed_device_subsets_are_refused(text: str, reason: str) -> None:
    with pytest.raises(DeviceSubsetError, match=reason):
        parse_devices(text, 8)


def test_parameters_and_pools_lie_where_the_table_says() -> None:
    rules = ShardingRules(make_mesh(jax.devices()[:2], 2))
    assert rules.parameter("layers.3.attention.qkv.weight").spec == PartitionSpec(None, "tp")
    assert rules.parameter("layers.3.attention.o.weight").spec == PartitionSpec(None, "tp")
    assert rules.pool().spec == PartitionSpec(None, None, "tp", None)
    assert rules.replicated().spec == PartitionSpec()
    assert {axis for axes in PARAMETER_AXES.values() for axis in axes} <= set(RULES)

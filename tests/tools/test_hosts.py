"""`triptych worker` on several hosts: flags, environment, and that jax is imported after it."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.worker.hosts.config import HostsConfig
from triptych.tools import hosts, launch, worker
from triptych.tools.config import ServeConfig
from triptych.tools.settings import resolve

FLAGS = ("--hosts=2", "--host-index=1", "--leader=10.0.0.1:8440")


def parsed(*flags: str) -> tuple[argparse.Namespace, ServeConfig]:
    parser = argparse.ArgumentParser()
    worker.add_arguments(parser)
    args = parser.parse_args(flags)
    return args, resolve(ServeConfig, args)


def test_the_flags_say_which_host_this_is() -> None:
    args, config = parsed(*FLAGS, "--device=cuda", "--startup-timeout=60")
    assert hosts.hosts_config(args, config) == HostsConfig(2, 1, "10.0.0.1:8440", "gpu", 60.0)
    assert hosts.hosts_config(*parsed()) is None


def test_a_flag_without_the_others_is_refused() -> None:
    with pytest.raises(ConfigError, match="--host-index, --leader is missing"):
        hosts.hosts_config(*parsed("--hosts=2"))


def test_kv_moves_by_grpc_unless_the_settings_say_otherwise() -> None:
    def chosen(*flags: str) -> tuple[TransportKind, ...]:
        args, config = parsed(*FLAGS, "--device=cpu", "--roles=decode", "--tp=4", "--model=dummy:toy", *flags)
        specs = worker.chosen_instances(config, None, "decode", "d")
        shared = hosts.hosts_config(args, config)
        assert shared is not None
        made = worker.worker_config(config, specs, "d", "s:1", "127.0.0.1", shared.platform)
        return hosts.on_hosts(made, config, shared).transports

    assert chosen() == (TransportKind.GRPC,)
    with pytest.raises(ConfigError, match="goes through the leader, by grpc"):
        chosen("--transport=device")


def test_a_host_has_its_share_of_the_devices_and_their_kind() -> None:
    _, config = parsed(*FLAGS, "--roles=decode", "--tp=4", "--emulate-devices=8")
    specs = worker.chosen_instances(config, None, "decode", "d")
    shared = HostsConfig(2, 1, "10.0.0.1:8440", "cpu")
    assert "count=8" in launch.hand_environment(config, specs, {}, shared)["XLA_FLAGS"]
    _, config = parsed(*FLAGS, "--tp=4")
    environment = launch.hand_environment(config, specs, {}, shared)
    assert environment["JAX_PLATFORMS"] == "cpu" and environment["XLA_FLAGS"].endswith("count=2")


def test_jax_is_imported_after_the_environment_is_set() -> None:
    """It reads its platform and its cache when it is imported."""
    asked = "import sys, triptych.tools.worker; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0

"""The start script calls commands with flags that they have."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
from pathlib import Path

import pytest

from triptych.tools.cli import COMMANDS
from triptych.tools.config import ServeConfig
from triptych.tools.settings import resolve

START = Path(__file__).parents[2] / "tools" / "deploy" / "start.sh"


def started(tmp_path: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the script does with a `triptych` that prints its arguments."""
    fake = tmp_path / "triptych"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LISTEN": "10.0.0.7", **variables}
    return subprocess.run(["bash", str(START), *argv], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("part", ["host", "scheduler", "gateway", "http", "prefill", "decode"])
def test_every_part_is_a_command_that_takes_its_flags(part: str, tmp_path: Path) -> None:
    done = started(tmp_path, part, SCHEDULER="10.0.0.2:8430", TP="4", MODEL="dummy:toy")
    assert done.returncode == 0, done.stderr
    command, *flags = done.stdout.splitlines()
    parser = argparse.ArgumentParser(allow_abbrev=False)
    importlib.import_module(COMMANDS[command].module).add_arguments(parser)
    args = parser.parse_args(flags)
    if part in ("prefill", "decode"):
        assert (args.roles, args.scheduler, args.listen) == (part, "10.0.0.2:8430", "10.0.0.7")
    if part != "http":
        config = resolve(ServeConfig, args)
        assert config.model == "dummy:toy"
        assert part in ("scheduler", "gateway") or (config.tensor_parallel_size, config.attention) == (4, "tpu")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "SCHEDULER=host:port is missing" in started(tmp_path, "decode", TP="4").stderr
    assert "no TPU chips under /dev" in started(tmp_path, "decode", SCHEDULER="a:1").stderr
    unknown = started(tmp_path, "encode")
    assert unknown.returncode == 2 and "no part 'encode'" in unknown.stderr


def test_a_part_on_several_hosts_says_which_of_them_it_is(tmp_path: Path) -> None:
    given = {"HOSTS": "2", "HOST_INDEX": "1", "LEADER": "10.0.0.3:9000"}
    pod = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "decode-0.decode"}
    for variables, leader in ((given, "10.0.0.3:9000"), (pod, "decode-0.decode:8440")):
        done = started(tmp_path, "decode", SCHEDULER="10.0.0.2:8430", TP="8", **variables)
        assert done.returncode == 0, done.stderr
        parser = argparse.ArgumentParser(allow_abbrev=False)
        importlib.import_module(COMMANDS["worker"].module).add_arguments(parser)
        args = parser.parse_args(done.stdout.splitlines()[1:])
        assert (args.hosts, args.host_index, args.leader) == (2, 1, leader)
    assert "HOST_INDEX" in started(tmp_path, "decode", SCHEDULER="a:1", TP="8", HOSTS="2").stderr

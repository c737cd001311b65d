"""`triptych serve` as a parent, with children that only say they are ready: how it starts, goes on, gives up and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Replaces the processes by scripts with the same names and instances; everything else is the real command.
FAKE = """
import os, sys
from triptych.tools import launch, serve
from triptych.tools.config import ServeConfig
CHILD = "from triptych.tools.child import announce_ready as a; import sys, time; {act}; time.sleep(60)"
def fake(name, act, instances=()):
    return launch.ProcessSpec(name, (sys.executable, "-c", CHILD.format(act=act)), dict(os.environ), instances)
launch.scheduler_process = lambda *a: fake("scheduler", "a(address='127.0.0.1:9')")
launch.worker_processes = lambda config, *a: tuple(fake(s.id, ACTS.get(s.id, "a()"), (s,)) for s in config.plan.instances())
from triptych.runtime.core.errors import TriptychError
try:
    sys.exit(serve.serve(ServeConfig(topology=TOPOLOGY, startup_timeout=30.0)))
except TriptychError as error:
    sys.exit(error.message)
"""


@contextmanager
def served(topology: str, acts: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    code = f"ACTS, TOPOLOGY = {acts or {}!r}, {topology!r}\n{FAKE}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str]) -> dict[str, int]:
    """Processes by name, from the ready line."""
    assert process.stdout is not None
    line = json.loads(process.stdout.readline())["ready"]
    assert line["address"] == "127.0.0.1:9" and line["pid"] == process.pid
    return line["processes"]


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=60)
    assert out == "", "stdout carries the ready line only"
    return process.returncode, err


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_sigterm_ends_every_child_and_the_status_is_0():
    with served("2P1D") as process:
        children = ready(process)
        assert list(children) == ["scheduler", "decode-0", "prefill-0", "prefill-1"]
        process.send_signal(signal.SIGTERM)
        status, err = end(process)
        assert status == 0 and "stopping" in err
        assert all(gone(pid) for pid in children.values())


def test_the_last_instance_of_a_stage_takes_the_deployment_with_it():
    with served("1P1D") as process:
        children = ready(process)
        os.kill(children["decode-0"], signal.SIGKILL)
        status, err = end(process)
        assert status == 1
        assert "decode-0 ended (killed by SIGKILL) and what is left cannot serve 1P1D" in err
        assert all(gone(pid) for pid in children.values())


def test_without_its_scheduler_nothing_can_serve():
    with served("2PD") as process:
        os.kill(ready(process)["scheduler"], signal.SIGKILL)
        assert end(process)[0] == 1


def test_losing_one_of_two_is_reported_and_survived():
    with served("2P1D") as process:
        children = ready(process)
        os.kill(children["prefill-0"], signal.SIGKILL)
        assert process.stderr is not None
        while "going on with 2 instances" not in (line := process.stderr.readline()):
            assert line, "serve ended"
        process.send_signal(signal.SIGTERM)
        assert end(process)[0] == 0


def test_a_worker_that_cannot_start_ends_the_start_with_its_words():
    with served("1P1D", {"decode-0": "sys.exit('no such model')"}) as process:
        status, err = end(process)
        assert status == 1
        assert "decode-0 ended before it was ready: exit code 1" in err and "no such model" in err


def test_a_signal_during_the_start_ends_it():
    with served("1P1D", {"decode-0": "print('waiting', flush=True)"}) as process:
        assert process.stderr is not None
        while "[decode-0] waiting" not in (line := process.stderr.readline()):
            assert line, "serve ended"
        process.send_signal(signal.SIGINT)
        assert end(process)[0] == 0

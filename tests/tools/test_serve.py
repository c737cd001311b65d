"""`triptych serve` as a parent, with children that only say they are ready: how it starts, restarts, gives up and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Replaces the processes by scripts with the same names and instances; everything else is the real command.
FAKE = """
import os, sys
from triptych.tools import http, launch, serve
from triptych.tools.config import ServeConfig
CHILD = "from triptych.tools.child import announce_ready as a; import os, sys, time; {act}; time.sleep(60)"
READY = "a(address='127.0.0.1:9')"
def fake(name, instances=()):
    return launch.ProcessSpec(name, (sys.executable, "-c", CHILD.format(act=ACTS.get(name, READY))), dict(os.environ), instances)
launch.scheduler_process = lambda *a: fake("scheduler")
launch.gateway_process = lambda *a: fake("gateway")
http.http_process = lambda *a: fake("http")
launch.worker_processes = lambda config, *a: tuple(fake(s.id, (s,)) for s in config.plan.instances())
from triptych.runtime.core.errors import TriptychError
try:
    sys.exit(serve.serve(ServeConfig(topology=TOPOLOGY, startup_timeout=100.0, port=0, http_port=HTTP)))
except TriptychError as error:
    sys.exit(error.message)
"""


@contextmanager
def served(
    topology: str, acts: dict[str, str] | None = None, http_port: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    code = f"ACTS, TOPOLOGY, HTTP = {acts or {}!r}, {topology!r}, {http_port!r}\n{FAKE}"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """The next line for scripts, which must be of this kind."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())[kind]


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """The next line for people with these words in it."""
    assert process.stderr is not None
    while words not in (line := process.stderr.readline()):
        assert line, "serve ended"
    return line


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=100)
    assert out == "", "stdout carries lines for scripts only"
    return process.returncode, err


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_ready_line_names_every_process_and_sigterm_ends_them_all_with_status_0():
    with served("2P1D", http_port=0) as process:
        ready = said(process, "ready")
        children = ready["processes"]
        assert list(children) == ["scheduler", "gateway", "http", "decode-0", "prefill-0", "prefill-1"]
        assert ready["pid"] == process.pid and ready["address"].startswith("127.0.0.1:")
        assert ready["addresses"] == dict.fromkeys(children, "127.0.0.1:9")
        process.send_signal(signal.SIGTERM)
        status, err = end(process)
        assert status == 0 and "stopping" in err
        assert all(gone(pid) for pid in children.values())


def test_who_dies_is_started_again_and_scripts_learn_the_new_pid():
    with served("1P1D") as process:
        children = said(process, "ready")["processes"]
        for victim in ("scheduler", "gateway", "decode-0"):
            os.kill(children[victim], signal.SIGKILL)
            back = said(process, "restarted")
            assert back["name"] == victim and back["pid"] != children[victim]
            os.kill(back["pid"], 0)
            children[victim] = back["pid"]
        process.send_signal(signal.SIGTERM)
        status, err = end(process)
        assert status == 0
        assert "decode-0 ended (killed by SIGKILL); starting it again in 0.1 s" in err and "gateway is back" in err
        assert all(gone(pid) for pid in children.values())


def test_a_crash_loop_is_said_clearly_with_the_last_words_and_does_not_end_the_rest(tmp_path):
    once = f"p = {str(tmp_path / 'mark')!r}; n = os.path.exists(p); open(p, 'w'); n and sys.exit('no memory'); "
    with served("2PD", {"pd-0": f"{once} a(address='x:1')"}) as process:
        children = said(process, "ready")["processes"]
        os.kill(children["pd-0"], signal.SIGKILL)
        wait_for(process, "pd-0 keeps dying: 5 times in")
        assert "no memory" in wait_for(process, "no memory")
        wait_for(process, "pd-0 ended (exit code 1); starting it again in 3.2 s")
        assert not gone(children["pd-1"]) and not gone(children["gateway"])
        process.send_signal(signal.SIGTERM)
        assert end(process)[0] == 0


def test_a_worker_that_leaves_in_good_order_stays_away(tmp_path):
    leave = tmp_path / "leave"
    act = (
        f"a(address='x:1'); [time.sleep(0.05) for _ in iter(lambda: os.path.exists({str(leave)!r}), True)]; sys.exit(0)"
    )
    with served("2P1D", {"prefill-0": act}) as process:
        said(process, "ready")
        leave.touch()
        assert "going on with 2 instances" in wait_for(process, "prefill-0 left")
        process.send_signal(signal.SIGTERM)
        status, err = end(process)
        assert status == 0 and "starting it again" not in err


def test_a_worker_that_cannot_start_ends_the_start_with_its_words():
    with served("1P1D", {"decode-0": "sys.exit('no such model')"}) as process:
        status, err = end(process)
        assert status == 1
        assert "decode-0 ended before it was ready: exit code 1" in err and "no such model" in err


def test_a_signal_during_the_start_ends_it():
    with served("1P1D", {"decode-0": "print('waiting', flush=True)"}) as process:
        wait_for(process, "[decode-0] waiting")
        process.send_signal(signal.SIGINT)
        assert end(process)[0] == 0

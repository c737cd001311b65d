"""Supervisor: real child processes that get ready, die, hang, ignore signals and outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from triptych.tools.supervisor import Child, ChildExitedError, StartupTimeoutError, Supervisor, describe_exit

READY = "from triptych.tools.child import announce_ready; announce_ready(address='a:1'); "


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def log() -> list[str]:
    return []


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_waits_for_every_ready_line_and_returns_what_they_said(log: list[str]):
    with Supervisor(log=log.append) as supervisor:
        for name in ("a", "b"):
            supervisor.start(name, script(f"print('hello', flush=True); {READY} import time; time.sleep(60)"))
        assert supervisor.wait_ready(100) == {"a": {"address": "a:1"}, "b": {"address": "a:1"}}
        assert {"[a] hello", "[b] hello"} <= set(log)
        assert supervisor.stop(grace=60) == {"a": -signal.SIGTERM, "b": -signal.SIGTERM}


def test_asking_twice_ends_children_at_once(log: list[str]):
    deaf = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY} time.sleep(60)"
    with Supervisor(log=log.append) as supervisor:
        supervisor.start("deaf", script(deaf))
        supervisor.wait_ready(100)
        timer = threading.Timer(0.3, supervisor.kill)
        timer.start()
        assert supervisor.stop(grace=50) == {"deaf": -signal.SIGKILL}
        timer.join()
    assert not any("did not end" in line for line in log)


def test_a_child_that_dies_while_starting_is_reported_with_code_and_last_words(log: list[str]):
    with Supervisor(log=log.append) as supervisor:
        supervisor.start("ok", script(f"{READY} import time; time.sleep(60)"))
        supervisor.start("bad", script("import sys; print('no such model', file=sys.stderr); sys.exit(3)"))
        with pytest.raises(
            ChildExitedError, match=r"bad ended before it was ready: exit code 3; its last lines:\n    no such model"
        ):
            supervisor.wait_ready(100)


def test_a_child_that_is_never_ready_times_out_by_name():
    with Supervisor(log=lambda line: None) as supervisor:
        supervisor.start("slow", script("import time; time.sleep(60)"))
        with pytest.raises(StartupTimeoutError, match="not ready after 0.2 s: slow"):
            supervisor.wait_ready(0.2)


def test_an_unasked_exit_is_told_once_and_the_others_live_on(log: list[str]):
    ended: list[tuple[str, int | None, bool]] = []

    def on_exit(child: Child) -> None:
        ended.append((child.name, child.exit_code, child.asked))

    with Supervisor(on_exit, log.append) as supervisor:
        victim = supervisor.start("victim", script(f"{READY} import time; time.sleep(60)"))
        other = supervisor.start("other", script(f"{READY} import time; time.sleep(60)"))
        supervisor.wait_ready(100)
        os.kill(victim.pid, signal.SIGKILL)
        assert supervisor.wait_exit(timeout=60) is victim
        wait_until(lambda: ended)
        assert ended == [("victim", -9, False)] and other.alive
        assert "[victim] ended unasked: killed by SIGKILL" in log
    wait_until(lambda: len(ended) == 2)
    assert ended[1] == ("other", -15, True)


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period(log: list[str]):
    with Supervisor(log=log.append) as supervisor:
        supervisor.start(
            "deaf", script(f"import signal, time; signal.signal(15, signal.SIG_IGN); {READY} time.sleep(60)")
        )
        supervisor.wait_ready(100)
        assert supervisor.stop(grace=0.2) == {"deaf": -9}
        assert any("did not end 0.2 s after SIGTERM" in line for line in log)


def test_some_can_be_stopped_before_the_others():
    with Supervisor(log=lambda line: None) as supervisor:
        for name in ("first", "second"):
            supervisor.start(name, script(f"{READY} import time; time.sleep(60)"))
        supervisor.wait_ready(100)
        assert supervisor.stop(60, ["first"]) == {"first": -15}
        assert [c.alive for c in supervisor.children] == [False, True]


def test_signals_are_forwarded():
    handler = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7)); "
    with Supervisor(log=lambda line: None) as supervisor:
        child = supervisor.start("c", script(f"{handler}{READY} signal.pause()"))
        supervisor.wait_ready(100)
        supervisor.forward(signal.SIGUSR1)
        assert supervisor.wait_exit(60) is child and child.exit_code == 7


def test_the_environment_is_exactly_what_was_given(log: list[str]):
    with Supervisor(log=log.append) as supervisor:
        supervisor.start(
            "c", script("import os; print(sorted(k for k in os.environ if k != 'LC_CTYPE'))"), env={"ONLY": "1"}
        )
        supervisor.wait_exit(60)
        wait_until(lambda: "[c] ['ONLY']" in log)


def test_two_living_children_cannot_share_a_name_but_a_new_one_may_follow_a_dead_one():
    with Supervisor(log=lambda line: None) as supervisor:
        first = supervisor.start("c", script(f"{READY} import time; time.sleep(60)"))
        supervisor.wait_ready(100)
        with pytest.raises(ValueError, match="is running"):
            supervisor.start("c", script("pass"))
        os.kill(first.pid, signal.SIGKILL)
        supervisor.wait_exit(60)
        second = supervisor.start("c", script(f"{READY} import time; time.sleep(60)"))
        supervisor.wait_ready(100)
        assert supervisor.children == (second,) and second.pid != first.pid and second.ready_at is not None


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path):
    child = f"from triptych.tools.child import end_with_parent; end_with_parent(); {READY} import time; time.sleep(60)"
    parent = (
        "import sys, time; from triptych.tools.supervisor import Supervisor; s = Supervisor();"
        f"c = s.start('c', [sys.executable, '-c', {child!r}]); s.wait_ready(100); print(c.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(script(parent), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert not gone(pid)
        process.kill()
        wait_until(lambda: gone(pid))


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (-9, "killed by SIGKILL"), (-250, "killed by signal 250")]
)
def test_exit_codes_in_words(code: int, words: str):
    assert describe_exit(code) == words


def test_roles_that_a_child_tells_are_kept_for_whoever_follows_it(log: list[str]):
    told = "from triptych.tools.child import announce_roles; announce_roles('d0', ['prefill']); announce_roles('d0', {'decode'}); "
    with Supervisor(log=log.append) as supervisor:
        child = supervisor.start("a", script(f"{READY}{told}"))
        wait_until(lambda: not child.alive and child.roles == {"d0": ["decode"]})
    assert not any("d0" in line for line in log)

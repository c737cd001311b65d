"""The parent's half of a local deployment: start child processes, wait until they are ready, pass signals on, say how they ended.

A child is ready when it prints one JSON line {"ready": {...}} to stdout (child.py is its half); {"roles": {...}} is kept for whoever starts another
in its place. Everything else it prints appears on the supervisor's log with the child's name in front. The supervisor never restarts a child by itself: a dead one is reported with its exit code, and
who supervises decides, and may start another under its name. It signals only processes it started, through their Popen objects, so a recycled pid cannot be hit.

Children run in process groups of their own, hence Ctrl-C reaches the supervisor alone, which ends them in order. Each holds the read end of
a pipe as stdin: when the supervisor is killed, the pipe closes and the children see it.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from triptych.runtime.core.errors import DeadlineError, InstanceLostError

LAST_LINES = 15  # of a child that died while starting: enough for a Python exception's end


class ChildExitedError(InstanceLostError):
    """A child process ended although nobody asked it to; the message has its exit code and last lines."""


class StartupTimeoutError(DeadlineError):
    """Some child was not ready in time."""


def describe_exit(code: int) -> str:
    """An exit code in words: 'exit code 3', or 'killed by SIGKILL' for a negative one as subprocess reports it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class Child:
    """One started process. Read-only for callers; the supervisor owns it."""

    def __init__(self, name: str, process: subprocess.Popen[str]):
        self.name = name
        self.process = process
        self.ready: dict[str, Any] | None = None
        """What its ready line said, once it came."""
        self.ready_at: float | None = None
        """When it came, on the monotonic clock."""
        self.roles: dict[str, Sequence[str]] = {}
        """Roles that its instances have taken on since, by instance."""
        self.exit_code: int | None = None
        self.asked = False
        """Whether its end was asked for."""
        self.lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.exit_code is None


class Supervisor:
    """Owns child processes. A context manager: leaving it stops them all.

    Args:
        on_exit: called once per child that ended, from a thread of the supervisor; its exit_code is set.
        log: receives one line without newline at a time, from several threads; default: stderr.
    """

    def __init__(self, on_exit: Callable[[Child], None] | None = None, log: Callable[[str], None] | None = None):
        self._on_exit = on_exit
        self._log = log or _log_to_stderr
        self._children: dict[str, Child] = {}
        self._changed = threading.Condition()

    @property
    def children(self) -> tuple[Child, ...]:
        return tuple(self._children.values())

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        """Start `argv` (no shell) with exactly `env` (None: this process's own). Returns at once. A dead child of this name is forgotten."""
        if name in self._children and self._children[name].alive:
            raise ValueError(f"a child named {name!r} is running; names must differ")
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
            process_group=0,
        )
        child = Child(name, process)
        self._children[name] = child
        assert process.stdout is not None and process.stderr is not None
        readers = [
            threading.Thread(target=self._read_stdout, args=(child, process.stdout), daemon=True),
            threading.Thread(target=self._read_stderr, args=(child, process.stderr), daemon=True),
        ]
        for thread in readers:
            thread.start()
        threading.Thread(target=self._reap, args=(child, readers), daemon=True).start()
        return child

    def wait_ready(self, timeout: float, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """Wait until the named children (None: all) are ready; returns what each ready line said, by name.

        Raises:
            ChildExitedError: one ended first.
            StartupTimeoutError: `timeout` seconds passed; the message names who is missing.
        """
        wanted = [self._children[n] for n in (self._children if names is None else names)]
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                dead = next((c for c in wanted if c.exit_code is not None), None)
                if dead is not None and dead.exit_code is not None:
                    tail = "".join(f"\n    {line}" for line in dead.lines)
                    when = "before it was ready" if dead.ready is None else "while the others were starting"
                    raise ChildExitedError(
                        f"{dead.name} ended {when}: {describe_exit(dead.exit_code)}; its last lines:{tail}"
                    )
                missing = [c.name for c in wanted if c.ready is None]
                if not missing:
                    return {c.name: c.ready or {} for c in wanted}
                left = deadline - time.monotonic()
                if left <= 0:
                    raise StartupTimeoutError(f"not ready after {timeout:g} s: {', '.join(missing)}")
                self._changed.wait(left)

    def wait_exit(self, timeout: float | None = None) -> Child | None:
        """Wait until any child has ended and return it; None when `timeout` passed first."""
        with self._changed:
            self._changed.wait_for(lambda: any(not c.alive for c in self.children), timeout)
            return next((c for c in self.children if not c.alive), None)

    def forward(self, signum: int) -> None:
        """Send a signal to every child that is alive."""
        for child in self.children:
            child.process.send_signal(signum)  # does nothing once the child was reaped

    def stop(self, grace: float, names: Iterable[str] | None = None) -> dict[str, int]:
        """SIGTERM the named children (None: all), last started first; SIGKILL who is left after `grace` seconds. Returns exit codes by name."""
        wanted = [self._children[n] for n in (self._children if names is None else names)]
        for child in reversed(wanted):
            child.asked = True
            child.process.terminate()
        deadline = time.monotonic() + grace
        for child in wanted:
            self._wait_for(child, max(0.0, deadline - time.monotonic()))
        for child in wanted:
            if child.alive:
                self._log(f"[{child.name}] did not end {grace:g} s after SIGTERM: killed")
                child.process.kill()
                self._wait_for(child, None)
        return {c.name: c.exit_code for c in wanted if c.exit_code is not None}

    def kill(self) -> None:
        """SIGKILL every child, also while `stop` waits for some: for an operator who has asked twice. May be called in a signal handler."""
        for child in list(self._children.values()):
            child.asked = True
            child.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(grace=5.0)

    def _wait_for(self, child: Child, timeout: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not child.alive, timeout)

    def _read_stdout(self, child: Child, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                if (roles := _parse(line, "roles")) is not None:
                    child.roles |= roles
                    continue
                ready = _parse(line, "ready") if child.ready is None else None
                if ready is None:
                    self._take(child, line)
                    continue
                with self._changed:
                    child.ready, child.ready_at = ready, time.monotonic()
                    self._changed.notify_all()

    def _read_stderr(self, child: Child, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._take(child, line)

    def _take(self, child: Child, line: str) -> None:
        text = line.rstrip("\n")
        child.lines.append(text)
        self._log(f"[{child.name}] {text}")

    def _reap(self, child: Child, readers: list[threading.Thread]) -> None:
        code = child.process.wait()
        for thread in readers:
            thread.join(timeout=1.0)  # its last words; a grandchild that holds the pipe must not hold us
        if child.process.stdin is not None:
            child.process.stdin.close()
        with self._changed:
            child.exit_code = code
            self._changed.notify_all()
        if not child.asked:
            self._log(f"[{child.name}] ended unasked: {describe_exit(code)}")
        if self._on_exit is not None:
            self._on_exit(child)


def _parse(line: str, key: str) -> dict[str, Any] | None:
    """The object of a {key: {...}} line, else None."""
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    said = value.get(key) if isinstance(value, dict) else None
    return said if isinstance(said, dict) else None


def _log_to_stderr(line: str) -> None:
    os.write(
        sys.stderr.fileno(), (line + "\n").encode()
    )  # one write a line: lines of several children do not interleave

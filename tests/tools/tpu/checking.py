"""`triptych compile-check` in a process of its own: libtpu is loaded once a process, and leaves its mark on the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

NO_COMPILER = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="no TPU compiler: libtpu is there for Linux on x86-64 only"
)


def compile_check(target: str, model: str, *flags: str, status: int = 0, limit: float = 110) -> list[dict[str, Any]]:
    """The rows that it prints; it must end with `status`."""
    environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # those are for the CPU
    argv = [sys.executable, "-m", "triptych.tools.cli", "compile-check", "--json", "--target", target, "--model", model]
    done = subprocess.run([*argv, *flags], env=environ, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == status, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]

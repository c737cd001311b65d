"""A worker that is told to end does so in order, soon and with status 0, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FLAGS = (
    "--scheduler=127.0.0.1:1",
    "--model=dummy:toy",
    "--device=cpu",
    "--roles=null",
    "--max-model-len=256",
    "--num-pages=65",
)
DOING = {"compiling": "compiled 1/", "waiting for a scheduler": "cannot register"}


@pytest.mark.limit(240)
@pytest.mark.parametrize("doing", DOING)
def test_a_worker_that_is_told_to_end_leaves_in_order(doing: str, tmp_path: Path) -> None:
    environ = dict(os.environ)
    if doing == "compiling":
        environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path)  # or there would be nothing to compile
    process = subprocess.Popen(
        [sys.executable, "-m", "triptych.tools.cli", "worker", *FLAGS], env=environ, stderr=subprocess.PIPE, text=True
    )
    said: list[str] = []
    seen = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if DOING[doing] in line:
                seen.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert seen.wait(200), said
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert process.wait(20) == 0, said
        assert time.monotonic() - told < 10
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        assert process.stderr is not None
        process.stderr.close()
    assert not any("Traceback" in line for line in said), said

"""The state machine can be imported, simulated and tested without gRPC, JAX or an event loop."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = ("jax", "grpc", "google.protobuf", "asyncio", "threading")


def test_the_scheduler_itself_imports_no_io() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import triptych.runtime.scheduler.scheduler\n"
        f"print([m for m in {FORBIDDEN!r} if m in sys.modules and m not in before])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == "[]"

"""Set-up of every test process: eight emulated CPU devices and a compile cache that outlives the run.

Both must be in the environment before jax is first imported, hence at import of this file. A value that is set already wins.
"""

from __future__ import annotations

import os
from pathlib import Path

pytest_plugins = ["tests.timeouts"]

EMULATED_DEVICES = 8
_FLAG = "--xla_force_host_platform_device_count"

if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}={EMULATED_DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # toy programs are small and many: keep them all

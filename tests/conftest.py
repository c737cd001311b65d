"""Set-up of every test process: eight emulated CPU devices, quick compilation, and a compile cache that outlives the run.

Both must be in the environment before jax is first imported, hence at import of this file. A value that is set already wins.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from hypothesis import settings

pytest_plugins = ["tests.timeouts", "tests.together"]

FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Toy programs run for microseconds and compile for seconds: with these they compile in half the time.
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    # And with these in a third of what is left (23 programs of the toy engine: 8.3 s of processor time, then 2.8 s).
    "--xla_cpu_parallel_codegen_split_count": "1",
}
if version("jaxlib").startswith("0.10."):
    # Gone from 0.11 on, where an unknown flag ends the process.
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"

for _name, _value in FLAGS.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_name}={_value}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault(
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"
)  # toy programs are small and many: keep them all

# How long an example takes is the machine's business; tests/timeouts.py bounds the whole test. Examples are the same in every run, so that a
# change fails for what it changed; `--hypothesis-profile=exploring` draws others each time.
settings.register_profile("exploring", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

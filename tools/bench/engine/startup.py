"""Starts of an instance in processes of their own: cold (nothing compiled is kept) and warm (the programs of the cold one are).

    python -m triptych.tools.bench.engine.startup '{"model": "dummy:toy", ...}'

runs one: it imports, makes the instance as a worker does, and prints one line of JSON. The measuring process must hold no device meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triptych.models.kernels.names import AUTO_KERNEL
from triptych.runtime.core.errors import TriptychError


class StartFailedError(TriptychError):
    """The process that should have started an instance did not."""


@dataclass(frozen=True)
class StartSettings:
    """What is started: fields of a worker's configuration. `dtype` may be "auto"; `num_pages`: of the KV pool; None: what fits."""

    model: str
    cache: str
    dtype: str
    tp: int
    max_num_seqs: int
    max_model_len: int
    chunk_tokens: int
    compile_threads: int
    num_pages: int | None = None
    attention: str = AUTO_KERNEL


@dataclass(frozen=True)
class Start:
    """Seconds by phase, from the launch of the process until the instance is ready, and how many programs the cache had.

    The phases: "process" (interpreter and imports), "devices", "model" (its files, but not its weights), then those of
    `runtime/worker/start_times.py`.
    """

    kind: str
    phases: dict[str, float]
    programs: int
    from_cache: int

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


def measure_starts(settings: StartSettings, tell: Callable[[str], None], timeout: float = 900.0) -> list[Start]:
    """A cold start and a warm one. Raises StartFailedError."""
    with tempfile.TemporaryDirectory(prefix="triptych-start-") as folder:
        starts = []
        for kind in ("cold", "warm"):
            tell(f"{kind} start of {settings.model}")
            starts.append(_start(kind, settings, Path(folder), timeout))
        return starts


def _start(kind: str, settings: StartSettings, programs: Path, timeout: float) -> Start:
    environ = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [
        sys.executable,
        "-m",
        __spec__.name if __spec__ else __name__,
        json.dumps(asdict(settings)),
        repr(time.time()),
    ]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise StartFailedError(f"the {kind} start took longer than {timeout:.0f} s") from None
    if done.returncode:
        raise StartFailedError(f"the {kind} start ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Start(kind, told["phases"], told["programs"], told["from_cache"])


def chosen_dtype(wanted: str, platform: str) -> str:
    """ "auto" is float32 on CPU and bfloat16 elsewhere."""
    return wanted if wanted != "auto" else "float32" if platform == "cpu" else "bfloat16"


def start(settings: StartSettings, launched: float) -> dict[str, Any]:
    """Make the instance in this process; what `Start` is made of. `launched`: the wall clock when the process was."""
    import jax

    from triptych.runtime.core.instance import Role
    from triptych.runtime.worker.build import build_instances, open_worker_model
    from triptych.runtime.worker.config import InstancePlan, WorkerConfig, read_by_compilers

    phases, last = {"process": time.time() - launched}, time.monotonic()

    def phase(name: str) -> None:
        nonlocal last
        now = time.monotonic()
        phases[name], last = now - last, now

    jax.devices()
    phase("devices")
    dtype = chosen_dtype(settings.dtype, jax.default_backend())
    config = WorkerConfig(
        name="bench",
        scheduler="none",
        instances=(InstancePlan("pd-0", frozenset({Role.PREFILL, Role.DECODE}), settings.tp),),
        model=settings.model,
        cache=Path(settings.cache).expanduser(),
        served_model_name="bench",
        dtype=dtype,
        kv_dtype=dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        chunk_tokens=settings.chunk_tokens,
        num_pages=settings.num_pages,
        compile_threads=settings.compile_threads,
        attention=settings.attention,
        environment=read_by_compilers(os.environ),
    )
    model = open_worker_model(config)
    phase("model")
    (parts,) = build_instances(config, model, lambda text: print(text, file=sys.stderr, flush=True))
    phase("instance")
    built = phases.pop("instance")
    times = parts.start
    phases |= times.phases
    phases["rest"] = max(0.0, built - times.seconds)
    return {"phases": phases, "programs": times.programs, "from_cache": times.from_cache}


if __name__ == "__main__":
    print(json.dumps(start(StartSettings(**json.loads(sys.argv[1])), float(sys.argv[2]))))
    sys.stdout.flush()
    os._exit(0)  # nothing is to be waited for

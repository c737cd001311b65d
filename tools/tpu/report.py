"""`python -m triptych.tools.tpu.report`: encoders of published models, compiled for TPU targets, with what the compiler says of them.

Memory is of one chip: weights, pool and inputs, what the program keeps meanwhile, and its code. Operations and bytes are the compiler's
estimates for one chip; it counts the body of a loop whose length is data once, so attention within spans is hardly in them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

MIB = 1 << 20

# Read by libtpu and JAX when they are loaded: no chips, no metadata server, other processes may compile beside this one.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Compiled:
    """What one program takes on one chip, by its compiler. `peak_bytes` contains the others of memory."""

    name: str
    argument_bytes: int
    temp_bytes: int
    peak_bytes: int
    flops: float
    bytes_accessed: float
    seconds: float


def compile_one(name: str, lowered: Any) -> Compiled:
    """Compile a lowered program. The compiler's own error comes out if it does not fit the chip."""
    start = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    memory, cost = executable.memory_analysis(), executable.cost_analysis() or {}
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        name=name,
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        seconds=seconds,
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m triptych.tools.tpu.report", description=__doc__)
    parser.add_argument("--target", action="append", help="such as v5e:2x4; again for several (default: all)")
    parser.add_argument("--model", action="append", help="again for several (default: all)")
    parser.add_argument("--layers", type=int, help="of each encoder (default: its own)")
    parser.add_argument("--slots", type=int, help="of the largest encode program (default: what serving compiles)")
    parser.add_argument("--largest", action="store_true", help="of the encode programs, the one of the largest bucket")
    parser.add_argument("--json", action="store_true", help="one object a line instead of a table")
    return parser


HEAD = (
    f"{'target':10} {'model':17} {'program':28} {'args MiB':>9} {'temp MiB':>9} {'of HBM':>6} "
    f"{'GFLOP':>9} {'MB moved':>9} {'s':>6}"
)


def line(target: str, model: str, program: Compiled, memory_bytes: int) -> str:
    """One row of the table."""
    return (
        f"{target:10} {model:17} {program.name:28} {program.argument_bytes / MIB:9.1f} {program.temp_bytes / MIB:9.1f} "
        f"{program.peak_bytes / memory_bytes:6.1%} {program.flops / 1e9:9.2f} {program.bytes_accessed / 1e6:9.1f} {program.seconds:6.1f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from triptych.sharding.tpu import TARGETS, tpu_mesh
    from triptych.tools.tpu.models import PUBLISHED, PublishedVision
    from triptych.tools.tpu.programs import lowered_programs

    chosen = parser().parse_args(argv)
    if not chosen.json:
        print(HEAD)
    for name in chosen.target or TARGETS:
        target = TARGETS[name]
        mesh = tpu_mesh(target)
        for model in (PUBLISHED[key] for key in chosen.model or PUBLISHED):
            model = model if chosen.layers is None else model.shallow(chosen.layers)
            if chosen.slots is not None and isinstance(model, PublishedVision):
                model = replace(model, slots=chosen.slots)
            for program, lowered in lowered_programs(model, mesh, largest=chosen.largest):
                compiled = compile_one(program, lowered)
                if chosen.json:
                    row = {"target": name, "model": model.name, "memory_bytes": target.memory_bytes, **asdict(compiled)}
                    print(json.dumps(row), flush=True)
                else:
                    print(line(name, model.name, compiled, target.memory_bytes), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

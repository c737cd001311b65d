"""What the TPU compiler says of one program: memory, operations, bytes, and how long it took.

Memory is of one chip: what a program is given (weights, pool, inputs), what it keeps meanwhile, and its code. Operations and bytes are the compiler's
estimates for one chip. They leave out what kernels do (attention on TPUs), and count the body of a loop whose length is data once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import Any

# Read by libtpu and JAX when they are loaded: no chips, no metadata server, other processes may compile beside this one.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class DoesNotFit(Exception):
    """The compiler gave up because a chip's memory is too small; the message is its own."""


@dataclass(frozen=True)
class Compiled:
    """What one program takes on one chip, by its compiler. `peak_bytes` contains the others of memory."""

    argument_bytes: int
    temp_bytes: int
    peak_bytes: int
    flops: float
    bytes_accessed: float
    seconds: float


def compile_lowered(lowered: Any) -> Compiled:
    """Compile a lowered program. Raises DoesNotFit if it is beyond the chip's memory."""
    start = time.perf_counter()
    try:
        executable = lowered.compile()
    except Exception as error:  # XLA's type for it is not public
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(" ".join(str(error).split())[:300]) from error
    seconds = time.perf_counter() - start
    memory, cost = executable.memory_analysis(), executable.cost_analysis() or {}
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=kept + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        seconds=seconds,
    )


def deeper(shallow: Compiled, deep: Compiled, further: int) -> Compiled:
    """`deep` with `further` times as much again as it has over `shallow`: what alike layers add. No figure goes below that of `deep`.

    Arguments and operations grow so exactly. Temporaries mostly do not grow at all, because a layer's memory serves the next one. `seconds` is what both took.
    """
    grown: dict[str, Any] = {
        field.name: max(
            getattr(deep, field.name),
            getattr(deep, field.name) + further * (getattr(deep, field.name) - getattr(shallow, field.name)),
        )
        for field in fields(Compiled)
    }
    return replace(deep, **(grown | {"seconds": shallow.seconds + deep.seconds}))

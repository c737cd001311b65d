"""What XLA's GPU compiler is told about a program. Elsewhere there is nothing to tell."""

from __future__ import annotations

from collections.abc import Mapping

from triptych.models.kernels.names import PLATFORMS

Options = Mapping[str, str | bool]

MANY_ROWS = 64
"""From here on cuBLAS multiplies at least as fast as the Triton kernels that XLA generates, whose candidates take most of the time to compile; below they are
faster, by a tenth at eight rows (docs/performance.md)."""


def compiler_options(attention: str, rows: int, alone: bool = False) -> Options:
    """For a program that multiplies so many rows by the weights. `alone`: for a prompt that has its step to itself.

    Its kernels are launched one by one, so that the first one runs while the others follow. A CUDA graph of them all, as for other steps, begins
    only when it is complete, milliseconds later; behind a step that runs nobody waits for that.
    """
    if PLATFORMS.get(attention) != "gpu":
        return {}
    products: Options = {"xla_gpu_enable_triton_gemm": False} if rows >= MANY_ROWS else {}
    return products | ({"xla_gpu_enable_command_buffer": ""} if alone else {})

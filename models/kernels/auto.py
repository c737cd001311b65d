"""The attention kernel that `auto` stands for on a device."""

from __future__ import annotations

from triptych.models.kernels.names import AUTO_KERNEL, REFERENCE
from triptych.sharding.devices import Device

HEAD_DIMS = (64, 128)
LEAST_COMPUTE_CAPABILITY = 8.0  # Ampere


def kernel_for(attention: str, device: Device, head_dim: int, page_size: int) -> str:
    """`attention` itself unless it is `auto`: then `gpu` on NVIDIA GPUs for heads and pages of sizes that its kernels were measured with, else the reference.

    On TPUs the reference, too: JAX's kernel compiles for them, but has not run on one here.
    """
    if attention != AUTO_KERNEL:
        return attention
    fits = head_dim in HEAD_DIMS and page_size >= 8 and page_size & (page_size - 1) == 0
    return "gpu" if fits and _nvidia(device) else REFERENCE


def _nvidia(device: Device) -> bool:
    """Whether it is an NVIDIA GPU that multiplies in bfloat16. AMD's have a compute capability that is no number."""
    try:
        return device.platform in ("gpu", "cuda") and float(getattr(device, "compute_capability", "0")) >= LEAST_COMPUTE_CAPABILITY  # fmt: skip
    except ValueError:
        return False

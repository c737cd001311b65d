"""The attention kernel that `auto` stands for on a device."""

from __future__ import annotations

from triptych.models.kernels.names import AUTO_KERNEL, REFERENCE
from triptych.sharding.devices import Device

HEAD_DIMS = {64, 128}
HOPPER = "9."  # compute capabilities: the only GPUs on which the kernels have run


def kernel_for(attention: str, device: Device, page_size: int, *head_dims: int) -> str:
    """The kernel of models with these heads, one for all of them: `attention` itself unless it is `auto`, then `gpu` on Hopper GPUs for heads and pages of sizes that its kernels were measured with, else the reference.

    On TPUs the reference, too: JAX's kernel compiles for them, but has not run on one here.
    """
    if attention != AUTO_KERNEL:
        return attention
    fits = set(head_dims) <= HEAD_DIMS and page_size >= 8 and page_size & (page_size - 1) == 0
    return "gpu" if fits and _hopper(device) else REFERENCE


def _hopper(device: Device) -> bool:
    return device.platform in ("gpu", "cuda") and str(getattr(device, "compute_capability", "")).startswith(HOPPER)

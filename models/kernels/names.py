"""The attention kernels by name, and what they are for. Without JAX, for those who only read settings."""

from triptych.models.kv import CODE_BYTES

REFERENCE = "reference"
AUTO_KERNEL = "auto"
"""What a device's kernel is, decided where the device is (`models/kernels/auto.py`)."""

PLATFORMS: dict[str, str | None] = {
    REFERENCE: None,
    "tpu": "tpu",
    "gpu": "gpu",
    "gpu-triton": "gpu",
    "gpu-mosaic": "gpu",
}
"""What JAX calls the devices that each kernel is for; None: any."""

CHOICES = (AUTO_KERNEL, *PLATFORMS)

READ_CODES = (REFERENCE, "gpu", "gpu-triton")
"""Kernels that attend over pages of codes with scales (`models/quantised_kv.py`)."""

FRESH = ("gpu", "gpu-triton", "gpu-mosaic")
"""Kernels that have another way for a prompt that is alone and begins its sequence (`models/kernels/gpu.py`)."""


def kv_problem(kernel: str, dtype: str) -> str | None:
    """Why the kernel cannot attend over pages in `dtype`; None if it can."""
    if dtype not in CODE_BYTES or kernel in (AUTO_KERNEL, *READ_CODES):
        return None
    return f"attention {kernel!r} does not read KV in {dtype}; the kernels that do are {', '.join(READ_CODES)}"

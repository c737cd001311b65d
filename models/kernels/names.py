"""The attention kernels by name, and what they are for. Without JAX, for those who only read settings."""

REFERENCE = "reference"
PLATFORMS: dict[str, str | None] = {REFERENCE: None, "tpu": "tpu", "gpu": "gpu", "gpu-mosaic": "gpu"}
"""What JAX calls the devices that each kernel is for; None: any."""

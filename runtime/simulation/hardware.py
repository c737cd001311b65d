"""Accelerators as numbers: what a roofline, a planner or a study of mixed chips needs to know of one.

Peaks are those of the makers' data sheets; what programs reach of them is a separate factor, measured where a machine
was at hand and assumed where not (each description says which). Descriptors in this form are what SPAD (arXiv
2510.08544) provisions clusters with. Prices are round figures of on-demand list prices in 2025, for comparing layouts
with each other; put your own contract's into a JSON file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path


class HardwareError(ValueError):
    """An unknown or impossible hardware description."""


@dataclass(frozen=True)
class Hardware:
    """One chip.

    Attributes:
        flops: dense bfloat16 operations a second, peak.
        bandwidth: bytes a second of its memory, peak.
        memory: bytes.
        link: bytes a second to a neighbour in one host or pod, one direction.
        network: bytes a second to another host, its share of the host's adapters.
        flops_reached, bandwidth_reached: share of the peaks that large matrix products and long reads reach.
        step_overhead: seconds that a step takes on top: launches, reading results.
        link_latency: seconds until the first byte, for collectives and transfers.
        watts: board power, if published.
        price: dollars an hour, if there is such a thing.
        source: where the numbers are from.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float
    network: float
    flops_reached: float = 0.6
    bandwidth_reached: float = 0.8
    step_overhead: float = 2e-4
    link_latency: float = 2e-6
    watts: float | None = None
    price: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)}"
            for name in ("flops", "bandwidth", "memory", "link", "network", "flops_reached", "bandwidth_reached")
            if not getattr(self, name) > 0
        ]
        wrong += [f"{n} is {getattr(self, n)}" for n in ("flops_reached", "bandwidth_reached") if getattr(self, n) > 1]
        wrong += [f"{n} is {getattr(self, n)}" for n in ("step_overhead", "link_latency") if getattr(self, n) < 0]
        if wrong:
            raise HardwareError(f"hardware {self.name!r}: {', '.join(wrong)}; expected positive, shares at most 1")


_H100_MEASURED = (
    "reached shares measured on one H100 80GB HBM3 with stock JAX 0.11.2: read 2.5 TB/s, matmul 690 TFLOP/s"
)

HARDWARE: dict[str, Hardware] = {
    chip.name: chip
    for chip in (
        Hardware(
            "h100", 989e12, 3.35e12, 80e9, 450e9, 50e9,
            flops_reached=0.70, bandwidth_reached=0.75, watts=700, price=3.0,
            source=f"NVIDIA H100 SXM5 data sheet; NVLink 4, one 400 Gb/s adapter a GPU; {_H100_MEASURED}",
        ),
        Hardware(
            "h200", 989e12, 4.8e12, 141e9, 450e9, 50e9,
            flops_reached=0.70, bandwidth_reached=0.75, watts=700, price=3.8,
            source="NVIDIA H200 SXM data sheet; shares of the H100 assumed",
        ),
        Hardware(
            "a100", 312e12, 2.039e12, 80e9, 300e9, 25e9,
            flops_reached=0.75, bandwidth_reached=0.80, watts=400, price=1.8,
            source="NVIDIA A100 80GB SXM data sheet; NVLink 3, one 200 Gb/s adapter a GPU; shares assumed",
        ),
        Hardware(
            "tpu-v5e", 197e12, 819e9, 16e9, 200e9, 12.5e9,
            price=1.2, source="Google Cloud TPU v5e page (1,600 Gb/s of ICI a chip); shares assumed",
        ),
        Hardware(
            "tpu-v5p", 459e12, 2.765e12, 95e9, 600e9, 25e9,
            price=4.2, source="Google Cloud TPU v5p page (4,800 Gb/s of ICI a chip); shares assumed",
        ),
        Hardware(
            "tpu-v6e", 918e12, 1.64e12, 32e9, 448e9, 25e9,
            price=2.7, source="Google Cloud TPU v6e page (3,584 Gb/s of ICI a chip); shares assumed",
        ),
        Hardware(
            "spad-prefill", 1920e12, 2.048e12, 64e9, 450e9, 50e9,
            flops_reached=0.70, bandwidth_reached=0.75, price=1.44,
            source="the prefill chip that SPAD (arXiv 2510.08544) proposes, at 0.48 times an H100's price; does not exist; shares and links of the H100",
        ),
    )
}  # fmt: skip


def find_hardware(name: str) -> Hardware:
    """A description by name, or from a JSON file with the fields of Hardware.

    Raises:
        HardwareError: neither, or the file does not describe a chip.
    """
    if name in HARDWARE:
        return HARDWARE[name]
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise HardwareError(
            f"no hardware {name!r}; known are {', '.join(HARDWARE)}; or name a .json file with the same fields"
        )
    try:
        values = json.loads(path.read_text())
        if unknown := set(values) - {f.name for f in fields(Hardware)}:
            raise HardwareError(f"{path}: unknown fields {', '.join(sorted(unknown))}")
        return Hardware(**values)
    except (TypeError, ValueError) as error:
        raise HardwareError(f"{path} does not describe hardware: {error}") from error


def as_json(hardware: Hardware) -> str:
    """What `find_hardware` reads."""
    return json.dumps(asdict(hardware), indent=1) + "\n"

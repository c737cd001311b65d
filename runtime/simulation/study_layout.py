"""From a topology and a description of devices to the kinds of instances of a study."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import Loops, Topology
from triptych.runtime.instance.composer import DefaultComposer, TakingTurns
from triptych.runtime.simulation.roofline import Roofline
from triptych.runtime.simulation.steptime import StepTimes
from triptych.runtime.simulation.steptime_table import StepTable
from triptych.runtime.simulation.study_fleet import Kind


@dataclass(frozen=True)
class Limits:
    """What an instance is configured with. `num_pages` None: as many as fit beside the weights."""

    page_size: int = 16
    max_num_seqs: int = 256
    max_model_len: int = 16384
    chunk_tokens: int = 2048
    max_prefill_rows: int = 8
    num_pages: int | None = None
    prefix_cache: bool = True


@dataclass(frozen=True)
class Device:
    """What instances of one role run on.

    Attributes:
        pages: KV pages that fit.
        bandwidth: bytes a second of KV in and out.
        price: dollars an hour of one instance, if known.
    """

    times: StepTimes
    limits: Limits
    pages: int
    bandwidth: float
    token_bytes: int
    price: float | None = None


def roofline_device(roofline: Roofline, limits: Limits, bandwidth: float | None = None) -> Device:
    """An instance that is computed from first principles. `bandwidth` defaults to its share of the network.

    Raises:
        HardwareError: the weights leave no room for KV.
    """
    pages = limits.num_pages or 1 + roofline.kv_tokens // limits.page_size
    link = bandwidth or roofline.hardware.network * roofline.tp
    return Device(roofline, limits, pages, link, roofline.model.kv_bytes, roofline.price)


def table_device(table: StepTable, limits: Limits, bandwidth: float | None = None) -> Device:
    """An instance that was measured; the table's own limits hold, and its pull bandwidth unless another is given."""
    measured = table.limits
    own = Limits(
        measured.page_size, measured.max_num_seqs, measured.max_model_len, measured.chunk_tokens,
        measured.max_prefill_rows, limits.num_pages or measured.num_pages, limits.prefix_cache,
    )  # fmt: skip
    if bandwidth is None and table.pull is not None:
        bandwidth = table.pull.bandwidth
    if bandwidth is None:
        raise ConfigError(
            "the table has no pull bandwidth; measure one (triptych fidelity) or give --kv-bandwidth (bytes a second)"
        )
    return Device(table, own, own.num_pages or measured.num_pages, bandwidth, measured.kv_bytes_per_token)


def layout(topology: Topology, prefill: Device, decode: Device) -> tuple[Kind, ...]:
    """The instances of `topology`; those that do both stages are like `decode`."""
    counts: dict[tuple[str, Loops], int] = {}
    for spec in topology.instances():
        name = spec.id.rpartition("-")[0]
        counts[name, spec.loops] = counts.get((name, spec.loops), 0) + 1
    return tuple(
        _kind(name, count, loops, decode if Role.DECODE in frozenset().union(*loops) else prefill)
        for (name, loops), count in counts.items()
    )


def _kind(name: str, count: int, loops: Loops, device: Device) -> Kind:
    limits, roles = device.limits, frozenset().union(*loops)
    composer = TakingTurns if len(loops) > 1 else DefaultComposer
    return Kind(
        name, count, roles, device.times, device.pages, limits.page_size, limits.max_num_seqs, limits.max_model_len,
        limits.chunk_tokens, limits.max_prefill_rows, device.bandwidth, device.token_bytes, limits.prefix_cache, composer,
    )  # fmt: skip

"""From a topology and a description of devices to the kinds of instances of a study."""

from __future__ import annotations

from dataclasses import dataclass, replace

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import Loops, Topology
from triptych.runtime.instance.composer import COMPOSERS, DEFAULT_COMPOSER, TakingTurns
from triptych.runtime.simulation.roofline import Roofline
from triptych.runtime.simulation.steptime import StepTimes
from triptych.runtime.simulation.steptime_encode import EncodeTimes, WithEncoder
from triptych.runtime.simulation.steptime_table import EncodeTable, StepTable
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
class MediaDevice:
    """What a device does with media.

    Attributes:
        times: of the encoder.
        pages: of the media pool of an instance that encodes or prefills, its null page included.
        patches: most patches a step, and of one image.
        embedding_bytes: bytes of one embedding.
        weight_bytes: bytes of the encoder's weights, 0 if that is not known.
    """

    times: EncodeTimes
    pages: int
    patches: int
    embedding_bytes: int
    weight_bytes: int = 0


@dataclass(frozen=True)
class Device:
    """What instances of one role run on.

    Attributes:
        pages: KV pages that fit.
        elastic: whether that is what fits, so that encoder and media pool have to come out of it.
        weight_bytes: bytes of the decoder's weights, 0 if that is not known.
        bandwidth: bytes a second of KV in and out.
        price: dollars an hour of one instance, if known.
        media: None for a text model.
    """

    times: StepTimes
    limits: Limits
    pages: int
    bandwidth: float
    token_bytes: int
    price: float | None = None
    media: MediaDevice | None = None
    elastic: bool = False
    weight_bytes: int = 0


def roofline_device(roofline: Roofline, limits: Limits, bandwidth: float | None = None) -> Device:
    """An instance that is computed from first principles. `bandwidth` defaults to its share of the network.

    Raises:
        HardwareError: the weights leave no room for KV.
    """
    pages = limits.num_pages or 1 + roofline.kv_tokens // limits.page_size
    link = bandwidth or roofline.hardware.network * roofline.tp
    return Device(
        roofline, limits, pages, link, roofline.model.kv_bytes, roofline.price,
        elastic=limits.num_pages is None, weight_bytes=roofline.model.weight_bytes,
    )  # fmt: skip


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


def table_media(table: EncodeTable, pages: int) -> MediaDevice:
    """An encoder that was measured."""
    return MediaDevice(table, pages, table.most, table.embedding_bytes)


def layout(
    topology: Topology, prefill: Device, decode: Device, encode: Device | None = None, composer: str = DEFAULT_COMPOSER
) -> tuple[Kind, ...]:
    """The instances of `topology`; those with several roles are like the last of them. `encode` defaults to `prefill`. `composer` is a name of COMPOSERS.

    Raises:
        ConfigError: an instance is to encode without an encoder.
    """
    devices = {Role.DECODE: decode, Role.PREFILL: prefill, Role.ENCODE: encode or prefill}
    counts: dict[tuple[str, Loops], int] = {}
    for spec in topology.instances():
        name = spec.id.rpartition("-")[0]
        counts[name, spec.loops] = counts.get((name, spec.loops), 0) + 1
    return tuple(
        _kind(name, count, loops, next(d for role, d in devices.items() if role in frozenset().union(*loops)), composer)
        for (name, loops), count in counts.items()
    )


def _kind(name: str, count: int, loops: Loops, device: Device, composer: str) -> Kind:
    limits, roles = device.limits, frozenset().union(*loops)
    composing = TakingTurns if len(loops) > 1 else COMPOSERS[composer]
    media, encodes, computes = device.media, Role.ENCODE in roles, bool(roles & {Role.PREFILL, Role.DECODE})
    if encodes and media is None:
        raise ConfigError(
            f"instances {name} are to encode, but nothing is said of an encoder; leave E out, or name one"
        )
    kind = Kind(
        name, count, roles, device.times, device.pages if computes else 1, limits.page_size,
        limits.max_num_seqs if computes else 0, limits.max_model_len, limits.chunk_tokens, limits.max_prefill_rows,
        device.bandwidth, device.token_bytes, limits.prefix_cache, composing,
        weight_bytes=device.weight_bytes if computes else 0,
    )  # fmt: skip
    if media is None or not roles & {Role.ENCODE, Role.PREFILL}:
        return kind
    kind = replace(kind, media_pages=media.pages, embedding_bytes=media.embedding_bytes)
    if encodes:
        times, weights = WithEncoder(device.times, media.times), kind.weight_bytes + media.weight_bytes
        kind = replace(kind, times=times, encode_patches=media.patches, weight_bytes=weights)
    return _squeezed(kind, kind.media_bytes + (media.weight_bytes if encodes else 0)) if device.elastic else kind


def _squeezed(kind: Kind, taken: int) -> Kind:
    """`kind` with so many bytes less for KV."""
    if not kind.max_num_seqs:
        return kind
    pages = kind.num_pages - -(-taken // (kind.page_size * kind.token_bytes))
    if pages < 2:
        raise ConfigError(
            f"an encoder and a media pool of {taken / 1e9:.1f} GB leave {kind.name} instances no KV pages"
        )
    return replace(kind, num_pages=pages)

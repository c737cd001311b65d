"""The immutable header of a transfer: everything two instances must agree on before the first byte moves.

The fast transport matches buffers by position and byte size only, so a wrong axis order, shape or dtype would arrive as wrong data without
an error. Therefore both sides describe the canonical chunk in full and compare: the producer when it is opened, the consumer when
it is shown the producer's header. A difference is refused by name.

Canonical chunk: one array [layers, 2 (k, v), granule pages, page_size, g heads, head_dim] on one device. The mesh is not part of the header.
Of codes with scales the last axis has words of 32 bits: an entry's codes, four a word, then its scale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Protocol

import numpy as np

from triptych.runtime.core.errors import IncompatibleError

PROTOCOL_VERSION = 1
CHUNK_ORDER = "layer,kv,page,slot,head,dim/1"
"""Axis order of a chunk and the version of its meaning (checksum, zeroed padding pages); bump the number when either changes."""


WORD = "uint32"
"""Of a chunk with scales."""


@dataclass(frozen=True)
class KvGroupHeader:
    """One KV group as it travels: `heads` are logical heads, `layers` the model's layer numbers, `scales` the dtype of its scales, if it has some."""

    name: str
    kind: str
    heads: int
    head_dim: int
    layers: tuple[int, ...]
    scales: str = ""


@dataclass(frozen=True)
class KvHeader:
    """What is moved and how it is laid out.

    Attributes:
        model, revision: identity of the weights that computed the KV.
        dtype: of pages, as numpy names it ("bfloat16").
        page_size: tokens a page.
        granule: pages a chunk; a shorter last one is padded with zeros.
        layer_groups: half-open layer ranges; one offer carries one of them.
    """

    model: str
    revision: str
    groups: tuple[KvGroupHeader, ...]
    dtype: str
    page_size: int
    granule: int
    layer_groups: tuple[tuple[int, int], ...]
    protocol: int = PROTOCOL_VERSION
    chunk_order: str = CHUNK_ORDER

    @property
    def chunk_dtype(self) -> str:
        """Of chunks: that of pages, or of the words that codes and scales are packed in."""
        return WORD if self.groups[0].scales else self.dtype

    @property
    def entry_bytes(self) -> int:
        """Of one token's keys (or values) of one head, in a chunk."""
        group = self.groups[0]
        scale = np.dtype(group.scales).itemsize if group.scales else 0
        return group.head_dim * np.dtype(self.dtype).itemsize + scale

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON form: equal digests mean equal headers."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class KvGroupLike(Protocol):
    """The part of `models.kv.KVGroup` that a header states."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def scales(self) -> str: ...


def group_headers(groups: Iterable[KvGroupLike]) -> tuple[KvGroupHeader, ...]:
    """The model's KV groups in header form."""
    return tuple(KvGroupHeader(g.name, g.kind, g.num_kv_heads, g.head_dim, tuple(g.layers), g.scales) for g in groups)


def difference(mine: KvHeader, theirs: KvHeader) -> list[str]:
    """Readable lines, one per field that differs; empty when the headers are equal."""
    return [
        f"{f.name}: mine {getattr(mine, f.name)!r}, theirs {getattr(theirs, f.name)!r}"
        for f in fields(KvHeader)
        if getattr(mine, f.name) != getattr(theirs, f.name)
    ]


def check(mine: KvHeader, theirs: KvHeader) -> None:
    """Refuses a peer whose KV is not laid out exactly as mine.

    Raises:
        IncompatibleError: naming every field that differs and both values.
    """
    lines = difference(mine, theirs)
    if lines:
        raise IncompatibleError(
            "KV headers differ; start both instances on the same model and settings: " + "; ".join(lines)
        )


def part_bytes(header: KvHeader, layer_group: int) -> int:
    """Bytes of one offer: a granule of pages of one layer group, padding included."""
    group, (start, stop) = header.groups[0], header.layer_groups[layer_group]
    return 2 * (stop - start) * header.granule * header.page_size * group.heads * header.entry_bytes

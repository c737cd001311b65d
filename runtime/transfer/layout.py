"""Which logical KV heads make a chunk, and which devices hold it.

A chunk is the unit that travels: `g` consecutive logical heads of some pages of some layers, whole on one device on both sides. Nothing about
a mesh goes over the wire, so any tensor-parallel size feeds any other: each side states the largest `g` that its own placement allows
(`head_unit`), and the transfer uses the greatest common divisor of the two.

A placement is what `sharding.heads.HeadLayout.slots()` returns: per device, the logical head in each local slot, None for a padding slot. Heads
may be replicated over devices: the first holder sends, and every holder receives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Slots = tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True)
class Holder:
    """One place of one chunk: local slots [block*g, (block+1)*g) of the device with index `device` on the mesh's "tp" axis."""

    chunk: int
    device: int
    block: int


@dataclass(frozen=True)
class ChunkLayout:
    """A placement of logical KV heads, seen as chunks of `g` heads for any `g` that divides `head_unit`.

    Raises:
        ValueError: devices have different numbers of slots, or some logical head below the highest is held by nobody.
    """

    slots: Slots

    def __post_init__(self) -> None:
        if not self.slots or len({len(row) for row in self.slots}) != 1 or not self.slots[0]:
            raise ValueError(f"every device must have the same, positive number of KV head slots, got {self.slots}")
        held = {head for row in self.slots for head in row if head is not None}
        if held != set(range(len(held))):
            raise ValueError(f"logical KV heads must be numbered from 0 without holes, got {sorted(held)}")

    @cached_property
    def heads(self) -> int:
        """Number of logical KV heads."""
        return len({head for row in self.slots for head in row if head is not None})

    @property
    def heads_per_device(self) -> int:
        """Local slots of one device, padding included."""
        return len(self.slots[0])

    @cached_property
    def head_unit(self) -> int:
        """The largest g for which every aligned run of g logical heads sits whole, in order and aligned, wherever any of it sits."""
        unit = math.gcd(self.heads, self.heads_per_device)
        for row in self.slots:
            for offset, head, length in _runs(row):
                unit = math.gcd(unit, offset, head, length)
        return unit

    def chunk_sizes(self) -> tuple[int, ...]:
        """Every g that a transfer to some other placement may use, smallest first."""
        return tuple(g for g in range(1, self.head_unit + 1) if self.head_unit % g == 0)

    def num_chunks(self, g: int) -> int:
        self._check(g)
        return self.heads // g

    def blocks(self, g: int) -> tuple[tuple[int | None, ...], ...]:
        """Per device and local block of g slots: the chunk it holds, None for padding."""
        self._check(g)
        count = self.heads_per_device // g
        return tuple(tuple(_chunk_of(row[b * g], g) for b in range(count)) for row in self.slots)

    def holders(self, g: int) -> tuple[Holder, ...]:
        """Every place of every chunk, ordered by chunk, then device: where a receiver puts them."""
        found = [
            Holder(chunk, device, block)
            for device, row in enumerate(self.blocks(g))
            for block, chunk in enumerate(row)
            if chunk is not None
        ]
        return tuple(sorted(found, key=lambda h: (h.chunk, h.device, h.block)))

    def senders(self, g: int) -> tuple[Holder, ...]:
        """One holder a chunk, in chunk order: where a sender takes them from."""
        first: dict[int, Holder] = {}
        for holder in self.holders(g):
            first.setdefault(holder.chunk, holder)
        return tuple(first[chunk] for chunk in range(self.num_chunks(g)))

    def _check(self, g: int) -> None:
        if g < 1 or self.head_unit % g:
            raise ValueError(f"chunks of {g} heads do not fit this placement; possible sizes: {self.chunk_sizes()}")


def negotiate(mine: int, theirs: int) -> int:
    """Heads per chunk for a transfer between placements with these head units: every chunk is whole on one device on both sides."""
    if mine < 1 or theirs < 1:
        raise ValueError(f"head units must be positive, got {mine} and {theirs}")
    return math.gcd(mine, theirs)


def _chunk_of(head: int | None, g: int) -> int | None:
    return None if head is None else head // g


def _runs(row: Sequence[int | None]) -> Iterator[tuple[int, int, int]]:
    """Maximal runs of consecutive logical heads in consecutive slots: (first slot, first head, length)."""
    start = 0
    while start < len(row):
        head = row[start]
        if head is None:
            start += 1
            continue
        end = start + 1
        while end < len(row) and row[end] == head + (end - start):
            end += 1
        yield start, head, end - start
        start = end

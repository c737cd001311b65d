"""How a model's heads, FFN columns and vocabulary sit on tp devices: exactly, by padding with zeros or by replication.

Three ways, in this order:

- *plain*      tp divides the KV heads;
- *replicated* the KV heads divide tp and tp divides the query heads: each KV head is held by tp / kv_heads devices, and
               each of them serves its own share of the head's query group;
- *padded*     KV heads are padded with zero heads to the next multiple of tp, each with a whole group of zero query
               heads. A zero query attends to zero values, and the zero columns that follow it in the output projection
               drop it, so the result is the same number. It is allowed while the cache at most doubles.

No JAX here: planners and the transfer layer read it too.
"""

from dataclasses import dataclass

# Beyond this the pages of pad heads outweigh the real ones, and a smaller tp serves the model better.
MAX_KV_GROWTH = 2


class IncompatibleTpError(ValueError):
    """The model's heads cannot be laid out on this many devices."""


@dataclass(frozen=True)
class HeadLayout:
    """Physical heads of a model on `tp` devices, in device order: device d holds the d-th of tp equal runs of slots."""

    tp: int
    logical_heads: int
    logical_kv_heads: int
    heads_total: int
    kv_heads_total: int
    replicas: int

    @property
    def heads_per_device(self) -> int:
        return self.heads_total // self.tp

    @property
    def kv_heads_per_device(self) -> int:
        return self.kv_heads_total // self.tp

    @property
    def group(self) -> int:
        """Query heads per physical KV head."""
        return self.heads_total // self.kv_heads_total

    def kv_sources(self) -> tuple[int | None, ...]:
        """The logical KV head in each physical slot, None where the slot is a pad."""
        logical = (slot // self.replicas for slot in range(self.kv_heads_total))
        return tuple(head if head < self.logical_kv_heads else None for head in logical)

    def query_sources(self) -> tuple[int | None, ...]:
        """The logical query head in each physical slot. Padding is at the end, so slots keep the logical order."""
        return tuple(head if head < self.logical_heads else None for head in range(self.heads_total))

    def slots(self) -> tuple[tuple[int | None, ...], ...]:
        """For each device, the logical KV head in each of its local slots (None = pad)."""
        sources, size = self.kv_sources(), self.kv_heads_per_device
        return tuple(sources[device * size : (device + 1) * size] for device in range(self.tp))


def head_layout(num_heads: int, num_kv_heads: int, tp: int) -> HeadLayout:
    """Lay out the heads on `tp` devices. Raises IncompatibleTpError with the sizes up to 16 that fit."""
    layout = _layout_or_none(num_heads, num_kv_heads, tp)
    if layout is None:
        fitting = ", ".join(str(size) for size in fitting_tp_sizes(num_heads, num_kv_heads))
        raise IncompatibleTpError(
            f"{num_heads} query heads over {num_kv_heads} KV heads do not fit on tp={tp} devices: "
            f"padding would more than double the KV cache; tp sizes that fit: {fitting}"
        )
    return layout


def fitting_tp_sizes(num_heads: int, num_kv_heads: int, largest: int = 16) -> tuple[int, ...]:
    """The tp sizes from 1 to `largest` that `head_layout` accepts."""
    return tuple(tp for tp in range(1, largest + 1) if _layout_or_none(num_heads, num_kv_heads, tp))


def padded_size(size: int, tp: int) -> int:
    """`size` rounded up to a multiple of tp: FFN width and vocabulary rows, filled with zeros."""
    return -(-size // tp) * tp


def _layout_or_none(heads: int, kv_heads: int, tp: int) -> HeadLayout | None:
    if tp < 1:
        raise ValueError(f"tp must be at least 1, got {tp}")
    if kv_heads % tp == 0:
        return HeadLayout(tp, heads, kv_heads, heads, kv_heads, replicas=1)
    if tp % kv_heads == 0 and heads % tp == 0:
        return HeadLayout(tp, heads, kv_heads, heads, tp, replicas=tp // kv_heads)
    padded = padded_size(kv_heads, tp)
    if padded > MAX_KV_GROWTH * kv_heads:
        return None
    return HeadLayout(tp, heads, kv_heads, padded * (heads // kv_heads), padded, replicas=1)

"""The few sizes that programs are compiled for, and the choice of the smallest one that fits a step.

Compile time is paid for every combination, so the defaults are sparse where padding is cheap. Decode rows grow by two, because what
attention reads is the product of rows and width; table widths, prefill tokens and draws grow by four; a mixed step has either no decode
rows or room for all of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.instance import Role

# A narrower table than this saves nothing that can be measured beside reading the weights.
SMALLEST_TABLE_TOKENS = 512
# Fewer prefill tokens than this cost as much as this many: the weights are read once either way.
SMALLEST_PREFILL = 32
GROWTH = 4


class PlanError(EngineError):
    """A plan asks for what the engine was not compiled for. Nothing of it was executed, but its author believes that it was."""


@dataclass(frozen=True)
class Buckets:
    """Compiled sizes, each tuple ascending.

    Attributes:
        decode_rows: rows of a pure decode step; empty for an instance that never decodes.
        mixed_decode_rows: decode rows that a step with prefill tokens has room for; starts with 0.
        prefill_tokens: prefill tokens of a step, over all its prefill rows.
        table_widths: pages of the longest row's block table.
        draws: tokens drawn in a step.
    """

    decode_rows: tuple[int, ...]
    mixed_decode_rows: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    table_widths: tuple[int, ...]
    draws: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("decode_rows", "mixed_decode_rows", "prefill_tokens", "table_widths", "draws"):
            sizes = getattr(self, name)
            if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < (0 if name == "mixed_decode_rows" else 1)):
                raise ValueError(f"{name} must be positive and strictly ascending, got {sizes}")
        if not (self.mixed_decode_rows and self.prefill_tokens and self.table_widths and self.draws):
            raise ValueError(f"only decode_rows may be empty, got {self}")


def smallest(sizes: Sequence[int], needed: int, what: str) -> int:
    """The smallest of the ascending `sizes` that is at least `needed`. Raises PlanError when there is none."""
    at = bisect_left(sizes, needed)
    if at == len(sizes):
        largest = sizes[-1] if sizes else "none"
        raise PlanError(f"the plan needs {needed} {what}; the largest compiled size is {largest}")
    return sizes[at]


def powers_of_two(limit: int) -> tuple[int, ...]:
    """1, 2, 4 … and `limit` itself."""
    sizes = [1 << bit for bit in range((limit - 1).bit_length())]
    return (*sizes, limit)


def geometric(lowest: int, limit: int) -> tuple[int, ...]:
    """`limit`, a quarter of it, and so on down to about `lowest`; ascending."""
    sizes = [limit]
    while sizes[-1] > lowest:
        smaller = max(lowest, -(-sizes[-1] // GROWTH))
        sizes.append(smaller)
    return tuple(reversed(sizes))


def default_buckets(
    *, page_size: int, max_num_seqs: int, max_model_len: int, chunk_tokens: int, roles: frozenset[Role]
) -> Buckets:
    """Sizes for an instance with these limits and roles. An instance that never decodes needs no decode programs."""
    decodes = Role.DECODE in roles
    width = -(-max_model_len // page_size)
    return Buckets(
        decode_rows=powers_of_two(max_num_seqs) if decodes else (),
        mixed_decode_rows=(0, max_num_seqs) if decodes else (0,),
        prefill_tokens=geometric(min(SMALLEST_PREFILL, chunk_tokens), chunk_tokens),
        table_widths=geometric(min(max(1, SMALLEST_TABLE_TOKENS // page_size), width), width),
        draws=geometric(1, max_num_seqs),
    )

"""The few programs that are compiled, by size, and the choice of the cheapest one that holds a step.

Compile time is paid for every program, so the defaults are sparse where padding is cheap. Decode rows grow by two, because what attention
reads is the product of rows and width; table widths, prefill tokens and draws grow by four. What a role rarely does has one program that
is large enough: an instance that only decodes computes prompts again after a preemption, and one that only prefills meets decode-shaped
rows as the last tokens of prompts.

An accelerator's attention kernels read what a row has, not what its table could hold, and an accelerator is bound by arithmetic from a few
hundred tokens on: there (`Sizes`) prompts have one width and more sizes, and rows begin at eight, since one row is multiplied no faster than eight. Beside prompts there are
fewer sizes, of three numbers of decode rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.instance import Role
from triptych.runtime.instance.speculation import most_draws

# A narrower table than this saves nothing that can be measured beside reading the weights.
SMALLEST_TABLE_TOKENS = 512
# Fewer prefill tokens than this cost as much as this many: the weights are read once either way.
SMALLEST_PREFILL = 32
# A shorter prompt's attention is nothing beside its products.
SMALLEST_FRESH = 512
# Fewer prompt tokens beside decodes cost as much as this many.
SMALLEST_MIXED = 128
# Decode rows of mixed programs, below the largest: an accelerator multiplies a padded row among prompt tokens as slowly as any other.
MIXED_ROWS = (32, 128)
GROWTH = 4
# What a decode row costs among prefill rows, in tokens: there its attention is computed for a block of queries of which it has one.
RAGGED_DECODE_COST = 32


class PlanError(EngineError):
    """A plan asks for what the engine was not compiled for. Nothing of it was executed, but its author believes that it was."""


@dataclass(frozen=True, order=True)
class ExtendShape:
    """The static sizes of one extend program: decode rows, prefill tokens (over all prefill rows), table width in pages.

    `fresh`: it takes one row, which begins its sequence, so that its tokens attend to each other only and no pages are read.
    `last_only`: its last layer is computed for the last token of each row only, so that no prompt can be scored by it.
    """

    decode_rows: int
    prefill_tokens: int
    width: int
    fresh: bool = False
    last_only: bool = False

    def __post_init__(self) -> None:
        if min(self.decode_rows, self.prefill_tokens) < 0 or self.tokens < 1 or self.width < 1:
            raise ValueError(f"a program needs tokens and a table: {self}")
        if self.fresh and self.decode_rows:
            raise ValueError(f"a fresh prompt is alone in its program: {self}")

    def __str__(self) -> str:
        kind = " fresh" * self.fresh + " last" * self.last_only
        return f"decode={self.decode_rows} prefill={self.prefill_tokens} width={self.width}{kind}"

    @property
    def tokens(self) -> int:
        return self.decode_rows + self.prefill_tokens

    def rows(self, max_prefill_rows: int) -> int:
        """Rows of the program, both segments."""
        return self.decode_rows + (max_prefill_rows if self.prefill_tokens else 0)


@dataclass(frozen=True)
class Demand:
    """What a step's rows need: decode-shaped rows, other rows and their tokens, pages of the longest block table.

    `fresh`: there is only one row, of several tokens, and it begins its sequence. `scored`: prompt tokens are scored.
    """

    decode_rows: int
    prefill_rows: int
    prefill_tokens: int
    width: int
    fresh: bool = False
    scored: bool = False


@dataclass(frozen=True)
class Buckets:
    """Compiled sizes: the extend programs, and the numbers of draws (ascending) that sampler programs take."""

    extend: tuple[ExtendShape, ...]
    draws: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.extend or len(set(self.extend)) != len(self.extend):
            raise ValueError(f"extend programs must be there, each once, got {[str(shape) for shape in self.extend]}")
        if not self.draws or self.draws[0] < 1 or list(self.draws) != sorted(set(self.draws)):
            raise ValueError(f"draws must be positive and strictly ascending, got {self.draws}")

    @property
    def score_tokens(self) -> tuple[int, ...]:
        """The numbers of prefill tokens that are scored at once."""
        scored = {shape.prefill_tokens for shape in self.extend if shape.prefill_tokens and not shape.last_only}
        return tuple(sorted(scored))

    def holds(self, demand: Demand) -> bool:
        """Whether one program has a decode segment and a prefill segment large enough for all of it."""
        return any(
            shape.decode_rows >= demand.decode_rows
            and shape.prefill_tokens >= demand.prefill_tokens
            and shape.width >= demand.width
            and not shape.fresh
            and not (shape.last_only and demand.scored)
            for shape in self.extend
        )


class ProgramChoice:
    """Chooses extend programs; remembers its choice for steps that only decode, which are many and alike."""

    def __init__(self, buckets: Buckets, max_prefill_rows: int) -> None:
        self._shapes, self._max_prefill_rows = buckets.extend, max_prefill_rows
        self._chosen: dict[Demand, tuple[ExtendShape, bool]] = {}

    def cheapest(self, demand: Demand) -> tuple[ExtendShape, bool]:
        """(program, whether decode-shaped rows go to its decode segment). Raises PlanError if no program holds the step."""
        chosen = self._chosen.get(demand)
        if chosen is None:
            candidates = list(self._candidates(demand))
            if not candidates:
                compiled = "; ".join(str(shape) for shape in sorted(self._shapes))
                raise PlanError(
                    f"no program holds {demand} with at most {self._max_prefill_rows} prefill rows; compiled are: {compiled}"
                )
            _, shape, separate = min(candidates)
            chosen = (shape, separate)
            if not demand.prefill_rows:
                self._chosen[demand] = chosen
        return chosen

    def _candidates(self, demand: Demand) -> Iterator[tuple[tuple[int, bool, bool, int], ExtendShape, bool]]:
        """(cost, program, whether decode rows are apart) for everything that fits."""
        all_rows = demand.decode_rows + demand.prefill_rows
        all_tokens = demand.decode_rows + demand.prefill_tokens
        for shape in self._shapes:
            if shape.width < demand.width or shape.fresh > demand.fresh or (shape.last_only and demand.scored):
                continue
            tokens, more = shape.prefill_tokens, (not shape.fresh, not shape.last_only)
            apart = shape.decode_rows >= demand.decode_rows and demand.prefill_rows <= self._max_prefill_rows
            if apart and tokens >= demand.prefill_tokens:
                yield (shape.tokens, *more, shape.width), shape, True
            elif tokens >= all_tokens and all_rows <= self._max_prefill_rows:
                cost = shape.tokens + RAGGED_DECODE_COST * demand.decode_rows
                yield (cost, *more, shape.width), shape, False


def smallest(sizes: Sequence[int], needed: int, what: str) -> int:
    """The smallest of the ascending `sizes` that is at least `needed`. Raises PlanError when there is none."""
    at = bisect_left(sizes, needed)
    if at == len(sizes):
        raise PlanError(f"the plan needs {needed} {what}; the largest compiled size is {sizes[-1]}")
    return sizes[at]


def powers_of_two(limit: int) -> tuple[int, ...]:
    """1, 2, 4 … and `limit` itself."""
    sizes = [1 << bit for bit in range((limit - 1).bit_length())]
    return (*sizes, limit)


def geometric(lowest: int, limit: int) -> tuple[int, ...]:
    """`limit`, a quarter of it, and so on down to `lowest`; ascending."""
    sizes = [limit]
    while sizes[-1] > lowest:
        sizes.append(max(lowest, -(-sizes[-1] // GROWTH)))
    return tuple(reversed(sizes))


def halves(lowest: int, limit: int, fine: int) -> tuple[int, ...]:
    """`geometric` sizes up to `fine`, then powers of two and what is half way between them, up to `limit`; ascending."""
    if limit <= fine:
        return geometric(lowest, limit)
    between = [size for power in powers_of_two(limit) for size in (power, power * 3 // 2) if fine < size < limit]
    return (*geometric(lowest, fine), *between, limit)


def _coarse(prefill_tokens: Sequence[int]) -> list[int]:
    """Of the ascending sizes the last, and before it those that are powers of two and worth a program beside decodes."""
    fine = [tokens for tokens in prefill_tokens[:-1] if tokens >= SMALLEST_MIXED and not tokens & (tokens - 1)]
    return [*fine, prefill_tokens[-1]]


def _last_only(shape: ExtendShape) -> ExtendShape:
    """The program with its last layer for last tokens alone, where that leaves out most of the layer."""
    worth = shape.prefill_tokens >= max(SMALLEST_PREFILL, shape.decode_rows)
    return replace(shape, last_only=True) if worth else shape


@dataclass(frozen=True)
class Sizes:
    """What an engine's devices and attention make cheap.

    Attributes:
        least_rows: fewest decode rows and draws of a program; fewer are padded.
        live_tables: attention reads what rows have, so prompts need programs for one table width only, and have more sizes instead.
        fresh: a prompt that is alone in its step and begins there has programs of its own.
        last_only: the last layer of prompts is computed for what is drawn from only. A program of the largest sizes is left whole for those that are scored, as are programs with more decode rows than prompt tokens.
    """

    least_rows: int = 1
    live_tables: bool = False
    fresh: bool = False
    last_only: bool = True


REFERENCE_SIZES = Sizes()


def default_buckets(
    *,
    page_size: int,
    max_num_seqs: int,
    max_model_len: int,
    chunk_tokens: int,
    roles: frozenset[Role],
    speculative_tokens: int = 0,
    prompt_logprobs: bool = True,
    sizes: Sizes = REFERENCE_SIZES,
) -> Buckets:
    """Programs for an instance with these limits and roles. With guesses there are some for a lone sequence with all of its own, and for more rows."""
    width = -(-max_model_len // page_size)
    widths = geometric(min(max(1, SMALLEST_TABLE_TOKENS // page_size), width), width)
    of_prompts = (width,) if sizes.live_tables else widths
    least_tokens = min(SMALLEST_PREFILL, chunk_tokens)
    prefill_tokens = geometric(least_tokens, chunk_tokens)
    if sizes.live_tables:
        prefill_tokens = halves(least_tokens, chunk_tokens, SMALLEST_TABLE_TOKENS)
    shapes: set[ExtendShape] = set()
    most = most_draws(max_num_seqs, speculative_tokens)
    alone = {1 + speculative_tokens} if 0 < speculative_tokens < most else set[int]()
    if Role.DECODE in roles:
        decode_rows = {*powers_of_two(max_num_seqs), *powers_of_two(most), *alone}
        padded = {min(max(rows, sizes.least_rows), most) for rows in decode_rows}
        shapes |= {ExtendShape(rows, 0, pages) for rows in padded for pages in widths}
    if Role.PREFILL in roles:
        shapes |= {ExtendShape(0, tokens, pages) for tokens in prefill_tokens for pages in of_prompts}
        if sizes.fresh:
            reached = takewhile(lambda pair: pair[0] < max_model_len, pairwise((0, *prefill_tokens)))
            shapes |= {ExtendShape(0, tokens, width, True) for _, tokens in reached if tokens >= SMALLEST_FRESH}
    if roles >= {Role.PREFILL, Role.DECODE}:
        mixed = {max_num_seqs}, prefill_tokens
        if sizes.live_tables:
            mixed = {min(rows, max_num_seqs) for rows in (*MIXED_ROWS, max_num_seqs)}, _coarse(prefill_tokens)
        shapes |= {ExtendShape(rows, tokens, pages) for rows in mixed[0] for tokens in mixed[1] for pages in of_prompts}
    largest = ExtendShape(max_num_seqs, chunk_tokens, width)
    if sizes.last_only:
        shapes = {_last_only(shape) for shape in shapes}
        largest = largest if prompt_logprobs else _last_only(largest)
    shapes.add(largest)
    draws = {*geometric(1, most), *alone}
    return Buckets(tuple(sorted(shapes)), tuple(sorted({min(max(n, sizes.least_rows), most) for n in draws})))

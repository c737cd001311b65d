"""StepPlan: everything one device step does, as plain data.

A plan is serialisable and complete: whoever executes the same plans in the same order on the same weights holds the same pool. That is
what a follower process of a multi-host instance does. Order inside a plan: `copies`, `seats`, the encoder over `encodes`, the draft model over
`catch_ups` and then `drafts`, the extend over `rows`, the draws, the `exports`.

Two plans may be in flight. A row whose input token is not known to the host yet (it is being drawn by the plan before) has empty
`tokens` and takes the token that its slot drew last, on the device.

What there is of every sequence in every step is a named tuple, so that many can be made at once (core/bulk.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from triptych.runtime.core.request import Logprobs
from triptych.runtime.core.sampling import SamplingParams


class Pool(StrEnum):
    """Which paged pool of an instance: KV, or embeddings of media."""

    KV = "kv"
    MEDIA = "media"


@dataclass(frozen=True)
class Encode:
    """One media item: its embeddings, `tokens` of them, go to `pages` of the media pool, from the first page's start. The shell has its pixels
    under `hash`."""

    hash: str
    patches: int
    tokens: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where an item's embeddings stand for a model of three positions a token (M-RoPE): each at (time + step, origin + row, origin + column).

    Attributes:
        grid: (steps, rows, columns) of the item's embeddings, in that order.
        time: position of its first step. origin: position of its first row and column.
        following: position of the text token behind it.
    """

    grid: tuple[int, int, int]
    time: int
    origin: int
    following: int


@dataclass(frozen=True)
class Embedded:
    """Input tokens [at, at + count) of a row are embeddings: number `first` and those that follow of the item in `pages` of the media pool.

    `place`: where the item stands, for models that ask; None: its tokens count on, as text does.
    """

    at: int
    count: int
    first: int
    pages: tuple[int, ...]
    place: Place | None = None


@dataclass(frozen=True)
class Attended:
    """All tokens of a row attend to the first `count` embeddings in `pages` of the media pool (cross-attention)."""

    count: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Seat:
    """A sample takes a sampler slot: its parameters, and the tokens its penalties count.

    `forbidden` token ids may not be drawn at positions below `forbidden_until` (min_tokens: EOS and stop ids), `forbidden_first` not at position `first`,
    that of the first output (what a transcript cannot begin with).
    `prompt`/`outputs` are empty unless `params.penalised`.
    """

    slot: int
    sample: int
    params: SamplingParams
    prompt: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    forbidden_until: int = 0
    forbidden_first: tuple[int, ...] = ()
    first: int = 0


class Draw(NamedTuple):
    """Draw one token for `slot` from the row's last hidden state. `position` is the drawn token's absolute position."""

    slot: int
    position: int


class Draft(NamedTuple):
    """The draft model guesses how a sample goes on, as its seat draws; it has its own KV of every token before these, in the same pages.

    Attributes:
        slot: of the sample. Guess i, from 1 on, is the input of the row with this `token_slot` and `guess` i.
        tokens: ids of the sample's last two tokens; of the last but one only, if the last is what the slot drew last.
        start: KV index of the first of the two.
        position: its RoPE position.
        pages: block table; guesses behind its end are not used.
        count: how many tokens to guess.
    """

    slot: int
    tokens: tuple[int, ...]
    start: int
    position: int
    pages: tuple[int, ...]
    count: int


class Row(NamedTuple):
    """One sequence's part of a step: extend it by its tokens at KV index `start` onwards. A sequence whose next tokens are guessed has a row of one token for
    each guess, behind its row of the token that is known: what is drawn there counts if the guess is right (drafting.py).

    Attributes:
        sequence: instance-local sequence number.
        tokens: known input ids; empty means exactly one token, the last one drawn by `token_slot`, or a guess for it.
        token_slot: slot whose last draw, or guess, is the input when `tokens` is empty.
        start: KV index of the first input token (= tokens already in the pages).
        position: RoPE position of the first input token; text counts on from it, or from the item before it that has a place.
        pages: block table, one page id per page, long enough for start + number of tokens.
        draws: draws made from the row's last position; empty for a prompt chunk that is not the last.
        score: ids whose log-probability is wanted: score[i] follows input token i (prompt_logprobs); empty = none.
        score_top: how many most likely tokens to report with each score.
        embedded: runs of input tokens whose embeddings come from the media pool, not from their ids; in order, without overlaps.
        attended: media that all its tokens attend to, in the request's order; the same in every row of a sequence.
        guess: which guess of the plan's draft for `token_slot` is the input; 0: none, but its last draw.
    """

    sequence: int
    tokens: tuple[int, ...]
    start: int
    position: int
    pages: tuple[int, ...]
    token_slot: int = 0
    draws: tuple[Draw, ...] = ()
    score: tuple[int, ...] = ()
    score_top: int = 0
    embedded: tuple[Embedded, ...] = ()
    attended: tuple[Attended, ...] = ()
    guess: int = 0

    @property
    def length(self) -> int:
        return max(1, len(self.tokens))

    @property
    def decode(self) -> bool:
        """Whether the row fits the decode segment of a program: one token with an id, nothing to score. What it attends to
        does not matter."""
        return len(self.tokens) <= 1 and not self.score and not self.embedded


@dataclass(frozen=True)
class Export:
    """Gather these pages for a puller, after this plan's extend. `first_page` is the index of pages[0] in the sequence's block table.

    Of the media pool: the index among all pages of the staging, item after item.
    """

    key: int
    first_page: int
    pages: tuple[int, ...]
    last: bool
    pool: Pool = Pool.KV


@dataclass(frozen=True)
class StepPlan:
    """One step. `id` increases by one a plan; results come back in the same order. Rows may be kept in columns (columns.py).

    `catch_ups`: tokens whose KV the draft model lacks; nothing is drawn there.
    """

    id: int
    rows: Sequence[Row] = ()
    seats: tuple[Seat, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()  # (source page, destination page)
    exports: tuple[Export, ...] = ()
    encodes: tuple[Encode, ...] = ()
    catch_ups: tuple[Row, ...] = ()
    drafts: tuple[Draft, ...] = ()

    @property
    def tokens(self) -> int:
        return sum([row.length for row in self.rows])


class Drawn(NamedTuple):
    """Result of one Draw. `logprobs` only when the seat asked for them."""

    slot: int
    token: int
    logprobs: Logprobs | None = None


class RowResult(NamedTuple):
    """Results of one row, draws in the row's order; `scores[i]` belongs to `row.score[i]`; `guess` is the input, where the draft model guessed it."""

    sequence: int
    drawn: tuple[Drawn, ...] = ()
    scores: tuple[Logprobs, ...] = ()
    guess: int | None = None


@dataclass(frozen=True)
class StepResult:
    """What came out of plan `id`, rows in plan order. They may be kept in columns (columns.py)."""

    id: int
    rows: Sequence[RowResult]

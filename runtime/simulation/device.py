"""Devices that execute StepPlans without a model.

`KvDevice` is for finding faults. What it writes for a token is a checksum of the token and of what it finds before it, so a page depends on
everything before it, as KV does; and what it draws is a function of all that it reads back through the block table, and of (seed, sample,
position). A wrong page, slot, position or order of work therefore gives another token than `expected_outputs`, which computes the same
from the request alone. Devices may differ by a *flavour*, as accelerators do in bf16: then there is no one
right answer, but every token must still follow from those before it (`follows`), which tokens of two attempts mixed up do not.
`PositionDevice` is for studies of large clusters: what it draws depends on (seed, sample, position) only, and it holds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from zlib import crc32

from triptych.runtime.core.errors import TriptychError
from triptych.runtime.core.request import Finish, FinishReason, Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.plan import Drawn, Pool, Row, RowResult, Seat, StepPlan, StepResult

VOCAB = 256  # few enough for stop tokens to be drawn now and then
EOS = 0
CELL = 4  # bytes that a page holds for each token


class DeviceFault(TriptychError):
    """A plan reads or writes what no right plan would: a bug of the instance's core."""


class Device(Protocol):
    """Executes plans when they are given to it; whoever has the result decides when the core hears of it."""

    def execute(self, plan: StepPlan) -> StepResult: ...

    def read(self, page: int, pool: Pool = Pool.KV) -> bytes:
        """What a page holds, to be sent elsewhere."""
        ...

    def write(self, page: int, content: bytes, pool: Pool = Pool.KV) -> None:
        """What came from elsewhere."""
        ...


def embedding(name: str, number: int) -> bytes:
    """Embedding `number` of the item with this hash: what stands in a cell of the media pool, and is the input in place of a
    token's id."""
    return crc32(b"%d" % number, crc32(name.encode())).to_bytes(CELL, "little")


def inputs(request: Request) -> list[int]:
    """What a right device computes the prompt from: token ids and embeddings."""
    out = list(request.prompt)
    for item in request.media:
        out[item.offset : item.end] = [int.from_bytes(embedding(item.hash, n), "little") for n in range(item.tokens)]
    return out


def draw(
    state: int, params: SamplingParams, sample: int, position: int, forbidden: Sequence[int] = (), flavour: int = 0
) -> int:
    """The token at `position`, given a checksum of all cells before it."""
    token = crc32(b"%d %d %d %d" % (params.seed, sample, position, flavour), state) % VOCAB
    while token in forbidden:
        token = (token + 1) % VOCAB
    return token


def expected_outputs(
    request: Request, max_model_len: int, sample: int, eos_ids: Sequence[int] = (EOS,)
) -> tuple[tuple[int, ...], Finish]:
    """What one sample of `request` must give on KvDevices, wherever and however often it is computed."""
    params, outputs, ends = request.sampling, list[int](), _ends(request, eos_ids)
    history, position = _History(inputs(request)), len(request.prompt)
    limit = max_model_len - position if params.max_tokens is None else min(params.max_tokens, max_model_len - position)
    while True:
        token = draw(history.state, params, sample, position, tuple(ends) if len(outputs) < params.min_tokens else ())
        outputs.append(token)
        if token in ends and len(outputs) > params.min_tokens:
            return tuple(outputs), ends[token]
        if len(outputs) >= limit:
            return tuple(outputs), Finish(FinishReason.LENGTH)
        history.add(token)
        position += 1


def follows(
    request: Request, sample: int, outputs: Sequence[int], flavours: Sequence[int], eos_ids: Sequence[int] = (EOS,)
) -> bool:
    """Whether each of `outputs` is what a device of some flavour draws after those before it."""
    params, ends = request.sampling, _ends(request, eos_ids)
    history, prompt = _History(inputs(request)), len(request.prompt)
    for index, token in enumerate(outputs):
        forbidden = tuple(ends) if index < params.min_tokens else ()
        if all(token != draw(history.state, params, sample, prompt + index, forbidden, f) for f in flavours):
            return False
        history.add(token)
    return True


def expected_finish(
    request: Request, outputs: Sequence[int], max_model_len: int, eos_ids: Sequence[int] = (EOS,)
) -> Finish | None:
    """How a sample with these outputs has ended, or None if it goes on."""
    params, count = request.sampling, len(outputs)
    limit = max_model_len - len(request.prompt)
    if count > params.min_tokens and outputs[-1] in (ends := _ends(request, eos_ids)):
        return ends[outputs[-1]]
    return Finish(FinishReason.LENGTH) if count >= min(limit, params.max_tokens or limit) else None


def _ends(request: Request, eos_ids: Sequence[int]) -> dict[int, Finish]:
    """Tokens that end a sample of `request`, and how."""
    ends = {token: Finish(FinishReason.STOP, token) for token in request.sampling.stop_token_ids}
    return ends if request.sampling.ignore_eos else ends | {token: Finish(FinishReason.STOP) for token in eos_ids}


def _cell(before: bytes | bytearray, token: int) -> bytes:
    """What is written for `token` behind the cell `before` (empty for the first)."""
    return crc32(b"%d" % token, crc32(before)).to_bytes(CELL, "little")


class _History:
    """The cells of a sequence of tokens, as one checksum."""

    def __init__(self, tokens: Sequence[int]):
        self._last = b""
        self.state = 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        self._last = _cell(self._last, token)
        self.state = crc32(self._last, self.state)


class _Slots:
    """What seats and draws leave behind in the sampler's slots."""

    def __init__(self, count: int, flavour: int = 0):
        self._flavour = flavour
        self._seats: list[Seat | None] = [None] * count
        self._last: list[int] = [0] * count

    def sit(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            self._seats[seat.slot] = seat

    def last(self, slot: int) -> int:
        return self._last[slot]

    def draw(self, slot: int, state: int, position: int) -> Drawn:
        seat = self._seats[slot]
        if seat is None:
            raise DeviceFault(f"slot {slot} draws and was never seated")
        forbidden = seat.forbidden if position < seat.forbidden_until else ()
        token = self._last[slot] = draw(state, seat.params, seat.sample, position, forbidden, self._flavour)
        return Drawn(slot, token)


class KvDevice:
    """Draws depend on everything before them, as the pages of the block table show it; encodes write cells of the media pool."""

    def __init__(self, config: InstanceConfig, flavour: int = 0):
        self._size = config.page_size
        self._pages = [bytearray(CELL * config.page_size) for _ in range(config.num_pages)]
        self._media = [bytearray(CELL * config.page_size) for _ in range(config.media_pages)]
        self._slots = _Slots(config.max_num_seqs, flavour)

    def execute(self, plan: StepPlan) -> StepResult:
        pages, size = self._pages, self._size
        for source, destination in plan.copies:
            pages[destination][:] = pages[source]
        self._slots.sit(plan.seats)
        for item in plan.encodes:
            for number in range(item.tokens):
                self._media_cell(item.pages, number)[:] = embedding(item.hash, number)
        lengths: list[int] = []
        for row in plan.rows:
            tokens = self._inputs(row)
            lengths.append(row.start + len(tokens))
            last = self._cell_at(row, row.start - 1) if row.start else b""
            for index, token in enumerate(tokens, row.start):
                page, cell = row.pages[index // size], CELL * (index % size)
                if not page:
                    raise DeviceFault(f"sequence {row.sequence} writes the null page")
                last = pages[page][cell : cell + CELL] = _cell(last, token)
        return StepResult(plan.id, tuple(self._result(row, end) for row, end in zip(plan.rows, lengths, strict=True)))

    def read(self, page: int, pool: Pool = Pool.KV) -> bytes:
        return bytes((self._media if pool is Pool.MEDIA else self._pages)[page])

    def write(self, page: int, content: bytes, pool: Pool = Pool.KV) -> None:
        (self._media if pool is Pool.MEDIA else self._pages)[page][:] = content

    def _media_cell(self, pages: Sequence[int], number: int) -> memoryview:
        page, cell = pages[number // self._size], CELL * (number % self._size)
        if not page:
            raise DeviceFault("an item uses the null page of the media pool")
        return memoryview(self._media[page])[cell : cell + CELL]

    def _inputs(self, row: Row) -> Sequence[int]:
        if not row.tokens:
            return (self._slots.last(row.token_slot),)
        if not row.embedded:
            return row.tokens
        tokens = list(row.tokens)
        for run in row.embedded:
            for number in range(run.count):
                cell = self._media_cell(run.pages, run.first + number)
                tokens[run.at + number] = int.from_bytes(cell, "little")
        return tokens

    def _cell_at(self, row: Row, index: int) -> bytes | bytearray:
        cell = CELL * (index % self._size)
        return self._pages[row.pages[index // self._size]][cell : cell + CELL]

    def _result(self, row: Row, end: int) -> RowResult:
        if not row.draws:
            return RowResult(row.sequence)
        state, left = 0, CELL * end
        for page in row.pages:
            state = crc32(self._pages[page][:left], state)
            left -= CELL * self._size
            if left <= 0:
                break
        return RowResult(row.sequence, tuple(self._slots.draw(d.slot, state, d.position) for d in row.draws))


class PositionDevice:
    """Draws depend on seed, sample and position alone; there is no KV."""

    def __init__(self, config: InstanceConfig):
        self._slots = _Slots(config.max_num_seqs)

    def execute(self, plan: StepPlan) -> StepResult:
        self._slots.sit(plan.seats)
        return StepResult(plan.id, tuple(self._result(row) for row in plan.rows))

    def read(self, page: int, pool: Pool = Pool.KV) -> bytes:
        return b""

    def write(self, page: int, content: bytes, pool: Pool = Pool.KV) -> None:
        """Nothing is kept."""

    def _result(self, row: Row) -> RowResult:
        return RowResult(row.sequence, tuple(self._slots.draw(d.slot, 0, d.position) for d in row.draws))

"""A device whose arithmetic shows every mix-up.

Its KV is the tokens themselves, page by page, and the next token is a function of all of them as read back through the
block table: a wrong page, slot, position or order of plans gives another token, and reading what was never written
fails at once. `expected_outputs` computes the same from the request alone.

An embedding is a (hash, number) in a page of the media pool; as an input it is a token of its own, whatever the id in its
place, so that embeddings of another item, or in the wrong order, show in the same way. What a row attends to is mixed into everything that
it writes and draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

from tests.runtime.instance.fake_draft import FakeDraft
from triptych.runtime.core.request import Finish, FinishReason, Logprobs, Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.plan import Draw, Drawn, Pool, Row, RowResult, Seat, StepPlan, StepResult

VOCAB = 97
EOS = 0
Cell = tuple[int, int]  # (token, RoPE position)
Embedding = tuple[str, int]  # (hash of the item, number of the embedding in it)


def next_token(
    tokens: list[int], params: SamplingParams, sample: int, position: int, forbidden: tuple[int, ...], counted: int
) -> int:
    """The draw after `tokens`; `counted` stands for what penalties count."""
    state = params.seed * 1_000_003 + sample * 7919 + position * 104_729 + counted * 31
    for index, token in enumerate(tokens):
        state = (state * 33 + (index + 1) * (token + 5)) % 2_147_483_647
    drawn = state % VOCAB
    while drawn in forbidden:
        drawn = (drawn + 1) % VOCAB
    return drawn


def token_of(embedding: Embedding) -> int:
    """What an embedding counts as; no vocabulary has it."""
    name, number = embedding
    return VOCAB + sum(ord(letter) * (index + 3) for index, letter in enumerate(name)) % 1009 + 13 * number


def read_prompt(request: Request) -> list[int]:
    """The prompt as the model reads it: ids, and embeddings in the place of media items."""
    tokens = list(request.prompt)
    for item in request.media:
        if item.attended:
            continue
        tokens[item.offset : item.end] = [token_of((item.hash, number)) for number in range(item.tokens)]
    return tokens


def mark_of(embeddings: list[Embedding]) -> int:
    """What attending to these adds to every token; 0 for none."""
    return sum(token_of(embedding) * (index + 1) for index, embedding in enumerate(embeddings)) % 10_007 * 2_000


def request_mark(request: Request) -> int:
    """Of all that the tokens of `request` attend to."""
    items = (item for item in request.media if item.attended)
    return mark_of([(item.hash, number) for item in items for number in range(item.tokens)])


def score_of(tokens: list[int], target: int) -> Logprobs:
    return Logprobs(-float((sum(tokens) * 13 + len(tokens) * 7 + target) % 101))


def counted(request: Request, outputs: list[int]) -> int:
    return sum(request.prompt) + 3 * sum(outputs) if request.sampling.penalised else 0


def expected_outputs(request: Request, max_model_len: int, sample: int = 0) -> tuple[list[int], Finish]:
    """What one sample of `request` must give, wherever and however it is computed."""
    params, outputs = request.sampling, []
    prompt, mark = read_prompt(request), request_mark(request)
    stops = {token: Finish(FinishReason.STOP, token) for token in params.stop_token_ids}
    if not params.ignore_eos:
        stops[EOS] = Finish(FinishReason.STOP)
    while True:
        position = len(request.prompt) + len(outputs)
        forbidden = tuple(stops) if len(outputs) < params.min_tokens else ()
        known = [token + mark for token in (*prompt, *outputs)]
        token = next_token(known, params, sample, position, forbidden, counted(request, outputs))
        outputs.append(token)
        if len(outputs) > params.min_tokens:
            if token in stops:
                return outputs, stops[token]
            for text in params.stop:
                if f"<{token}>" == text:
                    return outputs, Finish(FinishReason.STOP, text)
        if len(outputs) == params.max_tokens or len(request.prompt) + len(outputs) == max_model_len:
            return outputs, Finish(FinishReason.LENGTH)


class TokenProbe:
    """The text of token t is "<t>"; a stop string is one such text."""

    def __init__(self, stops: tuple[str, ...]):
        self._stops = stops

    def push(self, token: int) -> str | None:
        return f"<{token}>" if f"<{token}>" in self._stops else None


@dataclass
class Slot:
    seat: Seat
    counted: int
    last: int | None = None


class FakeDevice:
    """Executes plans when they are given to it; whoever holds the result decides when the core hears of it.

    `shelf`: hashes of the items whose pixels are there. `draft`: the draft model beside it.
    """

    def __init__(self, config: InstanceConfig):
        self.config = config
        self.pages: list[list[Cell | None]] = [[None] * config.page_size for _ in range(config.num_pages)]
        self.embeddings: list[list[Embedding | None]] = [[None] * config.page_size for _ in range(config.media_pages)]
        self.shelf: set[str] = set()
        self.encoded: list[str] = []
        self.slots: dict[int, Slot] = {}
        self.last_plan = 0
        self.plans: list[StepPlan] = []
        self.draft = FakeDraft(config, self._predict)
        self._guesses: dict[int, list[int]] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        assert plan.id == self.last_plan + 1, "plans come in the order of their ids"
        self.last_plan = plan.id
        self.plans.append(plan)
        self._check_shape(plan)
        for source, destination in plan.copies:
            self.pages[destination] = list(self.pages[source])
        for seat in plan.seats:
            seen = sum(seat.prompt) + 3 * sum(seat.outputs) if seat.params.penalised else 0
            self.slots[seat.slot] = Slot(seat, seen)
        for encode in plan.encodes:
            assert encode.hash in self.shelf, "an item is encoded without its pixels"
            self.encoded.append(encode.hash)
            for number in range(encode.tokens):
                page, place = divmod(number, self.config.page_size)
                self.embeddings[encode.pages[page]][place] = (encode.hash, number)
        self._guesses = self.draft.run(plan, self._last)
        for draft in plan.drafts:
            known = self.read(draft.pages, 0, draft.start + 1)
            assert known == self.draft.tokens(draft.pages, draft.start + 1), "the draft model read other tokens"
        inputs = [self._inputs(row) for row in plan.rows]
        for row, tokens in zip(plan.rows, inputs, strict=True):
            for offset, token in enumerate(tokens):
                page, slot = divmod(row.start + offset, self.config.page_size)
                assert row.pages[page] != 0, "a row writes the null page"
                self.pages[row.pages[page]][slot] = (token, row.position + offset)
        return StepResult(
            plan.id, tuple(self._result(row, len(tokens)) for row, tokens in zip(plan.rows, inputs, strict=True))
        )

    def read(self, pages: tuple[int, ...], start: int, count: int) -> list[int]:
        """Tokens `start`.. of a block table."""
        tokens = []
        for index in range(start, start + count):
            cell = self.pages[pages[index // self.config.page_size]][index % self.config.page_size]
            assert cell is not None, f"KV index {index} was read and never written"
            assert cell[1] == index, f"KV index {index} holds position {cell[1]}"
            tokens.append(cell[0])
        return tokens

    def _inputs(self, row: Row) -> list[int]:
        tokens = list(row.tokens) or [self._guess(row) if row.guess else self._last(row.token_slot)]
        behind = 0
        for run in row.embedded:
            assert behind <= run.at and run.count > 0 and run.at + run.count <= len(tokens), (
                "runs are in order, in the row"
            )
            behind = run.at + run.count
            for index in range(run.count):
                page, place = divmod(run.first + index, self.config.page_size)
                embedding = self.embeddings[run.pages[page]][place]
                assert embedding is not None, "an embedding was read and never written"
                assert embedding[1] == run.first + index, "the embedding is another of its item"
                tokens[run.at + index] = token_of(embedding)
        mark = mark_of(self._attended(row))
        return [token + mark for token in tokens]

    def _attended(self, row: Row) -> list[Embedding]:
        found: list[Embedding] = []
        for media in row.attended:
            for number in range(media.count):
                page, place = divmod(number, self.config.page_size)
                embedding = self.embeddings[media.pages[page]][place]
                assert embedding is not None, "what is attended to was never written"
                assert embedding[1] == number, "it is another embedding of its item"
                found.append(embedding)
        return found

    def _result(self, row: Row, length: int) -> RowResult:
        known = self.read(row.pages, 0, row.start + length)
        scores = tuple(score_of(known[: row.start + i + 1], target) for i, target in enumerate(row.score))
        guess = self._guess(row) if row.guess else None
        return RowResult(row.sequence, tuple(self._draw(draw, known) for draw in row.draws), scores, guess)

    def _guess(self, row: Row) -> int:
        assert not row.tokens
        return self._guesses[row.token_slot][row.guess - 1]

    def _predict(self, slot: int, tokens: list[int]) -> int:
        """What `slot` draws behind `tokens`, unless ids are forbidden there."""
        seat = self.slots[slot].seat
        return next_token(tokens, seat.params, seat.sample, len(tokens), (), 0)

    def _draw(self, draw: Draw, known: list[int]) -> Drawn:
        slot = self.slots[draw.slot]
        seat = slot.seat
        assert draw.position == len(known), "a draw follows the row's last token"
        forbidden = seat.forbidden if draw.position < seat.forbidden_until else ()
        slot.last = next_token(known, seat.params, seat.sample, draw.position, forbidden, slot.counted)
        if seat.params.penalised:
            slot.counted += 3 * slot.last
        return Drawn(draw.slot, slot.last, Logprobs(-1.0) if seat.params.logprobs is not None else None)

    def _last(self, slot: int) -> int:
        last = self.slots[slot].last
        assert last is not None, f"slot {slot} has drawn nothing yet"
        return last

    def _check_shape(self, plan: StepPlan) -> None:
        config = self.config
        prefill = [row for row in plan.rows if not row.decode]
        assert plan.rows or plan.encodes or plan.exports, "an empty plan is no plan"
        assert sum(encode.patches for encode in plan.encodes) <= config.encode_patches
        assert len({encode.hash for encode in plan.encodes}) == len(plan.encodes), "an item is encoded twice"
        for encode in plan.encodes:
            assert all(0 < page < config.media_pages for page in encode.pages)
            assert len(encode.pages) == -(-encode.tokens // config.page_size)
        most = config.max_num_seqs if prefill else config.max_draws
        assert sum(row.decode for row in plan.rows) <= most
        assert sum(len(row.draws) for row in plan.rows) <= most
        assert len(prefill) <= config.max_prefill_rows
        assert sum(row.length for row in prefill) <= config.chunk_tokens
        for before, row in pairwise(plan.rows):
            if row.sequence == before.sequence:  # a guess
                assert row.decode and (row.tokens or row.guess) and len(row.draws) == 1 and row.pages == before.pages
                assert row.start == before.start + before.length and row.token_slot == before.token_slot
        first = [next(rows) for _, rows in groupby(plan.rows, key=lambda row: row.sequence)]
        assert len({row.sequence for row in first}) == len(first), "a sequence has two rows that are apart"
        for row in plan.rows:
            assert len(row.score) <= row.length
            assert row.start + row.length <= len(row.pages) * config.page_size
            assert all(0 < page < config.num_pages for page in row.pages) and len(set(row.pages)) == len(row.pages)
        slots = [draw.slot for row in first for draw in row.draws]
        assert len(set(slots)) == len(slots), "a slot draws twice"
        for export in plan.exports:
            assert export.pool is Pool.MEDIA or len(export.pages) == config.export_pages or export.last

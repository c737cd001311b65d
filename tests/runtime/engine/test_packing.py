"""Packing by columns gives the very words that packing row by row gives, and reading the very results, over random plans."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.runtime.engine import plain_packing
from tests.runtime.engine.driver import BOTH
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import MAX_LOGPROBS, SamplingParams
from triptych.runtime.core.tasks import AbortTask, StartLocal, TaskEnded
from triptych.runtime.engine.batch import BatchPacker
from triptych.runtime.engine.block_tables import BlockTables
from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.engine.config import EngineConfig, engine_config
from triptych.runtime.engine.draws import DrawPacker
from triptych.runtime.engine.results import PendingStep, read
from triptych.runtime.engine.variants import Variant
from triptych.runtime.instance.columns import DecodeRows, DrawnRows
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import Command, DeviceReady, Report, StepDone
from triptych.runtime.instance.plan import Attended, Draw, Embedded, Place, Row, StepPlan, StepResult
from triptych.runtime.instance.speculation import Speculation

PAGE, PAGES, SLOTS, LONGEST, CHUNK = 4, 22, 6, 64, 12
LIMITS: dict[str, Any] = {"num_pages": PAGES, "max_num_seqs": SLOTS, "max_model_len": LONGEST, "chunk_tokens": CHUNK, "page_size": PAGE, "max_prefill_rows": 3}  # fmt: skip
VOCAB = 5  # few tokens: they repeat, and so are guessed


class Checked:
    """The host half of an engine that packs and reads everything both ways. `seen` counts what there was."""

    def __init__(self, config: EngineConfig, rng: random.Random):
        self._config, self._rng = config, rng
        self._rows = BatchPacker(config)
        self._draws = DrawPacker(config.buckets.draws, config.max_num_seqs, config.carried)
        self._seats: dict[int, Any] = {}
        self.seen: Counter[str] = Counter()

    def run(self, plan: StepPlan) -> StepResult:
        for seat in plan.seats:
            self._seats[seat.slot] = seat
            self._draws.tables.seat(seat)
        batch = self._rows.pack(plan)
        if batch is None:
            return read(PendingStep(plan, None))
        shape, packed, first_token = plain_packing.pack_rows(plan, self._config)
        assert batch.shape == shape and batch.first_token == first_token
        np.testing.assert_array_equal(batch.packed, packed)
        words, logprobs = None, ()
        draws = self._draws.pack(plan)
        if draws is not None:
            sizes, beyond = self._config.buckets.draws, self._config.carried
            variant, size, packed, logprobs = plain_packing.pack_draws(plan, self._seats, sizes, beyond)
            assert (draws.variant, draws.size, draws.logprobs) == (variant, size, logprobs)
            np.testing.assert_array_equal(draws.packed, packed)
            words = self._words(size, 2 + 2 * MAX_LOGPROBS if variant is Variant.FULL else 1)
            self.seen[variant] += 1
        scored = any(row.score for row in plan.rows)
        scores = self._words(shape.prefill_tokens, 1 + 2 * MAX_LOGPROBS) if scored else None
        score_rows = tuple(first - shape.decode_rows for first in first_token) if scored else ()
        guesses = self._words(len(plan.drafts) + 1, self._config.speculative_tokens) if plan.drafts else None
        result = read(PendingStep(plan, None, words, logprobs, scores, score_rows, guesses=guesses))  # pyright: ignore[reportArgumentType]
        assert result == plain_packing.read(plan, words, logprobs, scores, score_rows, guesses)
        self._count(plan, shape.decode_rows == 0, result)
        return result

    def _words(self, rows: int, columns: int) -> Any:
        """What a device would give back."""
        return np.array([[self._rng.randrange(1, VOCAB) for _ in range(columns)] for _ in range(rows)], np.int32)

    def _count(self, plan: StepPlan, together: bool, result: StepResult) -> None:
        decodes = [row for row in plan.rows if row.decode]
        self.seen["columns"] += isinstance(plan.rows, DecodeRows)
        self.seen["drawn columns"] += isinstance(result.rows, DrawnRows)
        self.seen["known"] += any(row.tokens for row in decodes)
        self.seen["mixed"] += 0 < len(decodes) < len(plan.rows)
        self.seen["decodes among prefill rows"] += bool(decodes) and together
        self.seen["guesses"] += len(plan.rows) > len({row.sequence for row in plan.rows})
        self.seen["drafts"] += bool(plan.drafts)
        self.seen["scores"] += any(row.score for row in plan.rows)
        self.seen["several draws"] += any(len(row.draws) > 1 for row in plan.rows)


KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "n": 2},
    {"temperature": 0.7, "seed": 2**40 + 3},
    {"temperature": 0.7, "top_k": 3, "min_p": 0.1},
    {"temperature": 0.0, "min_tokens": 4, "stop_token_ids": (1, 2)},
    {"temperature": 0.9, "logprobs": 3, "prompt_logprobs": 2},
    {"temperature": 0.5, "frequency_penalty": 0.5, "logit_bias": ((2, 1.0), (3, -4.0))},
)


def request(rng: random.Random, name: int, kinds: int) -> Request:
    prompt = tuple(rng.randrange(1, VOCAB) for _ in range(rng.choice((1, 3, 7, 20, 30))))
    params: dict[str, Any] = {"max_tokens": rng.randrange(1, 34), "ignore_eos": rng.random() < 0.5} | rng.choice(
        KINDS[:kinds]
    )
    return Request(str(name), f"gw{name % 2}", "m", prompt, SamplingParams(**params))


@pytest.mark.parametrize(
    ("seed", "guesses", "kinds", "model"),
    [(1, 0, 1, None), (2, 0, 5, None), (3, 0, 7, None), (4, 3, 2, None), (5, 3, 7, None), (6, 3, 7, "a draft model")],
)
def test_plans_of_a_busy_instance(seed: int, guesses: int, kinds: int, model: str | None) -> None:
    rng = random.Random(seed)
    checked = Checked(engine_config(**LIMITS, speculative_tokens=guesses, draft_model=model is not None), rng)
    core = InstanceCore(
        InstanceConfig(
            InstanceRef("i", 1), "", "", BOTH, PAGES, PAGE, SLOTS, LONGEST, CHUNK, 3, 6, eos_ids=(4,),
            speculation=Speculation(guesses, longest=3, shortest=1, model=model) if guesses else None,
        ),
        stop_probe=lambda stops: pytest.fail("no stop strings"),
        random=rng,
    )  # fmt: skip
    waiting: deque[StepResult] = deque()
    preempted = 0
    for number in range(250):
        if rng.random() < 0.4:
            core.handle(Command(StartLocal(request(rng, number, kinds))), 0.0)
        for held in core.held():
            if rng.random() < 0.005:
                core.handle(Command(AbortTask(held.request, Status.CANCELLED, "gone")), 0.0)
        messages = core.handle(DeviceReady(), 0.0) if len(waiting) < 2 else []
        planned = messages[-1] if messages else None
        if isinstance(planned, StepPlan):
            waiting.append(checked.run(planned))
        if waiting and (len(waiting) == 2 or planned is None or rng.random() < 0.1):
            messages += core.handle(StepDone(waiting.popleft()), 0.0)
            core.audit()
        ends = [m.report for m in messages if isinstance(m, Report) and isinstance(m.report, TaskEnded)]
        preempted += sum(end.preemptions for end in ends)
    expected = {"known", "mixed", "greedy"}
    expected |= {"guesses"} if guesses else {"columns", "drawn columns"}
    expected |= {"drafts"} if model is not None else set()
    expected |= {"several draws"} if kinds > 1 else set()
    expected |= {"random", "filtered", "full"} if kinds > 3 else set()
    expected |= {"scores"} if kinds > 5 else set()
    assert {name for name, count in checked.seen.items() if count} >= expected
    assert preempted


def table(rng: random.Random, tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, PAGES) for _ in range(-(-tokens // PAGE) + rng.randrange(2)))


MEDIA: dict[str, Any] = {"media_pages": 9, "encode_patches": 8, "roles": BOTH | {Role.ENCODE}, "prompt_logprobs": True}


@pytest.mark.parametrize("changes", [{}, MEDIA, MEDIA | {"mrope": True}, MEDIA | {"attended": 6}], ids=("text", "media", "places", "attended"))  # fmt: skip
def test_rows_of_every_kind_in_any_order(changes: dict[str, Any]) -> None:
    rng = random.Random(7)
    config = engine_config(**LIMITS, **changes)
    checked = Checked(config, rng)
    tables: dict[int, tuple[int, ...]] = {}
    for number in range(150):
        rows: list[Row] = []
        for sequence in rng.sample(range(30), rng.randrange(1, SLOTS + 1)):
            length = rng.choice((1, 1, 1, rng.randrange(2, 5)))
            start = rng.randrange(LONGEST - length + 1)
            pages = tables.get(sequence, ())
            if rng.random() < 0.2:
                pages = (*pages[:1], *pages[1:])  # another object that says the same
            if len(pages) * PAGE < start + length:
                pages += table(rng, start + length)[len(pages) :]
            elif rng.random() < 0.2:
                pages = table(rng, start + length)
            tables[sequence] = pages
            rows.append(_row(rng, config, sequence, start, length, pages))
        longer = [row for row in rows if not row.decode]
        rows = [row for row in rows if row not in longer[3:]]
        checked.run(StepPlan(number, tuple(rows)))
    assert checked.seen["mixed"] and checked.seen["known"]


def _row(
    rng: random.Random, config: EngineConfig, sequence: int, start: int, length: int, pages: tuple[int, ...]
) -> Row:
    tokens = tuple(rng.randrange(VOCAB) for _ in range(length)) if length > 1 or rng.random() < 0.5 else ()
    row = Row(sequence, tokens, start, start + rng.randrange(9), pages, rng.randrange(SLOTS))
    if config.attended and rng.random() < 0.7:
        count = rng.randrange(1, config.attended + 1)
        row = row._replace(attended=(Attended(count, tuple(rng.randrange(1, 9) for _ in range(2))),))
    elif config.takes_media and tokens and rng.random() < 0.5:
        place = Place((1, 2, 4), start, start, start + 9) if config.mrope else None
        run = Embedded(length - 1, 1, rng.randrange(8), tuple(rng.randrange(1, 9) for _ in range(2)), place)
        row = row._replace(embedded=(run,))
    return row


def test_more_sequences_than_lines_take_turns() -> None:
    tables = BlockTables(2, 4, 100)
    for number in range(40):
        pages = ((number + 1, 2 * number + 1), (7, number + 2, 3))
        found = tables.of((number, 100 + number % 3), pages, 3)
        assert found.tolist() == [[number + 1, 2 * number + 1, 0], [7, number + 2, 3]]


def test_a_table_that_shrank_ends_where_it_says() -> None:
    tables = BlockTables(1, 4, 100)
    for pages in ((1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (1, 2), (9,), (9, 2)):
        assert tables.of((5,), (pages,), 4).tolist() == [[*pages, 0, 0, 0, 0][:4]]


def test_a_sequence_has_one_block_table() -> None:
    same = (1, 2)
    assert BlockTables(2, 4, 100).of((5, 5), (same, same), 2).tolist() == [[1, 2], [1, 2]]
    with pytest.raises(PlanError, match="sequence 5 has two block tables"):
        BlockTables(2, 4, 100).of((5, 5), ((1, 2), (1, 3)), 2)


def test_rows_in_columns_are_rows() -> None:
    pages, others = (3, 4), (5,)
    rows = DecodeRows((8, 9), ((), (17,)), (6, 2), (7, 2), (pages, others), (1, 0), ((), ()))
    first = Row(8, (), 6, 7, pages, 1, (Draw(1, 7),))
    assert rows == (first, Row(9, (17,), 2, 2, others, 0, (Draw(0, 3),))) and len(rows) == 2
    assert rows[0] == first and rows[:1] == (first,) and list(reversed(rows))[1] == first
    drawn = DrawnRows((8, 9), (1, 0), (30, 31))
    assert [(row.sequence, row.drawn[0].slot, row.drawn[0].token) for row in drawn] == [(8, 1, 30), (9, 0, 31)]
    assert replace(StepPlan(1, rows), id=2).tokens == 2

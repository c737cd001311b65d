"""Greedy tokens are those of a dense forward pass, however rows are cut, mixed, ordered and overlapped."""

from __future__ import annotations

import itertools

import pytest

from tests.runtime.engine.driver import CHUNK, GREEDY, PAGE, Driver, sequence, toy_config
from tests.runtime.engine.oracle import greedy
from triptych.runtime.engine.batch import BatchPacker
from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.instance.plan import Draw, StepPlan

pytestmark = pytest.mark.limit(300)  # the first test compiles the engine

PROMPTS = ([11, 200, 3, 77, 5], [9, 8, 7, 6, 5, 4, 3, 2, 1, 250, 251, 4, 99], [42], [100, 101, 102, 103, 104, 105, 106])


def test_prefill_in_one_chunk_then_decode_one_step_ahead(driver: Driver) -> None:
    expected = [greedy(prompt, 8) for prompt in PROMPTS]
    sequences = [sequence(number, list(prompt)) for number, prompt in enumerate(PROMPTS)]
    assert driver.generate(sequences, 8) == expected


@pytest.mark.parametrize("chunk", [1, 3, 5, 13])
def test_chunked_prefill_draws_the_same_token(driver: Driver, chunk: int) -> None:
    prompt = list(PROMPTS[1])
    expected = greedy(prompt, 1)
    seq = sequence(2, prompt)
    drawn: list[int] = []
    while seq.cached < len(prompt):
        count = min(chunk, len(prompt) - seq.cached)
        row = seq.row(count, draws=seq.cached + count == len(prompt))
        (drawn,) = driver.tokens(row, seats=(seq.seat(),) if row.start == 0 else ())
    assert drawn == expected


def test_decode_and_prefill_rows_in_any_order_come_back_in_plan_order(driver: Driver) -> None:
    expected = [greedy(prompt, 2) for prompt in PROMPTS]
    a, b, c, d = (sequence(number, list(prompt)) for number, prompt in enumerate(PROMPTS))
    driver.generate([a, d], 1)
    # d decodes, b is a last chunk after an earlier one, a decodes, c is a prompt of one token.
    driver.run(b.row(9, draws=False))
    rows = (d.carried_row(), b.row(4), a.carried_row(), c.row(1))
    result = driver.run(*rows, seats=(b.seat(), c.seat()))
    assert [row.sequence for row in result.rows] == [3, 1, 0, 2]
    assert [row.drawn[0].slot for row in result.rows] == [3, 1, 0, 2]
    assert [row.drawn[0].token for row in result.rows] == [
        expected[3][1],
        expected[1][0],
        expected[0][1],
        expected[2][0],
    ]


def test_several_prompts_share_a_step(driver: Driver) -> None:
    expected = [greedy(list(prompt), 1) for prompt in (PROMPTS[0], PROMPTS[3])]
    a, b = sequence(0, list(PROMPTS[0])), sequence(1, list(PROMPTS[3]))
    assert driver.tokens(b.row(7), a.row(5), seats=(a.seat(), b.seat())) == [expected[1], expected[0]]


def test_a_known_token_may_be_given_to_a_decode_row(driver: Driver) -> None:
    prompt = list(PROMPTS[0])
    expected = greedy([*prompt, 123], 1)
    seq = sequence(1, prompt)
    driver.generate([seq], 1)
    seq.outputs[:] = [123]
    assert driver.tokens(seq.row(1)) == [expected]


def test_a_long_sequence_uses_the_wide_table(driver: Driver) -> None:
    prompt = [(37 * i) % 256 for i in range(40)]
    expected = greedy(prompt, 6)
    seq = sequence(0, prompt)
    while len(prompt) - seq.cached > CHUNK:
        driver.run(seq.row(CHUNK, draws=False))
    assert driver.generate([seq], 6) == [expected]


def test_positions_are_those_of_the_row_and_not_of_the_cache(driver: Driver) -> None:
    prompt = list(PROMPTS[1])
    expected = greedy(prompt, 3, first_position=500)
    assert driver.generate([sequence(0, prompt, position_offset=500)], 3) == [expected]


def test_draws_of_one_row_share_its_hidden_state(driver: Driver) -> None:
    prompt = list(PROMPTS[0])
    (token,) = greedy(prompt, 1)
    first, second = sequence(0, prompt), sequence(1, prompt)
    row = first.row(5)
    row = row._replace(draws=(Draw(0, 5), Draw(1, 5)))
    result = driver.run(row, seats=(first.seat(), second.seat()))
    assert [(drawn.slot, drawn.token) for drawn in result.rows[0].drawn] == [(0, token), (1, token)]


def test_copied_pages_serve_a_fork(driver: Driver) -> None:
    prompt = list(PROMPTS[1])
    expected = greedy([*prompt, 60], 3)
    parent = sequence(0, prompt)
    driver.generate([parent], 1)
    # The fork shares the parent's full pages and has a copy of its partial last one.
    own = (70, 71, 72, 73)
    shared = len(prompt) // PAGE
    fork = sequence(1, prompt, pages=(*parent.pages[:shared], *own), outputs=[60], cached=len(prompt))
    copy = ((parent.pages[shared], own[0]),)
    ((token,),) = driver.tokens(fork.row(1), seats=(fork.seat(),), copies=copy)
    fork.outputs.append(token)
    parent.outputs[0] = 61
    driver.run(parent.row(1))  # writes the parent's own last page; the fork must not see it
    for _ in range(2):
        fork.outputs.append(driver.tokens(fork.carried_row())[0][0])
    assert fork.outputs[1:] == expected


def test_many_copies_in_one_plan_are_applied_in_order(driver: Driver) -> None:
    prompt = list(PROMPTS[0])
    expected = greedy(prompt, 1)
    seq = sequence(0, prompt[:4])
    driver.run(seq.row(4, draws=False))
    chain = [seq.pages[0], *range(60, 72)]
    copies = tuple(itertools.pairwise(chain))
    moved = sequence(1, prompt, pages=(chain[-1], 75), cached=4)
    assert driver.tokens(moved.row(1), seats=(moved.seat(),), copies=copies) == [expected]


def test_a_plan_without_rows_or_draws_is_answered(driver: Driver) -> None:
    seq = sequence(0, [1, 2, 3])
    assert driver.run(seats=(seq.seat(),)).rows == ()
    (row,) = driver.run(seq.row(3, draws=False)).rows
    assert (row.sequence, row.drawn, row.scores) == (0, (), ())


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (0, 1)])
def test_prompts_beyond_the_limits_are_refused_by_name(numbers: tuple[int, ...]) -> None:
    rows = tuple(sequence(number, [5] * 20, GREEDY).row(4 if len(numbers) == 4 else 9) for number in numbers)
    expected = "prefill_rows=4, .* at most 3 prefill rows" if len(numbers) == 4 else "prefill_tokens=18"
    with pytest.raises(PlanError, match=expected):
        BatchPacker(toy_config()).pack(StepPlan(0, rows=rows))

"""Draws equal those of a sampler that sorts, in numpy: every parameter, in any company, slot and bucket."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.engine import oracle
from tests.runtime.engine.driver import GREEDY, Driver, Seq, sequence
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.buckets import PlanError
from triptych.runtime.engine.draws import DrawPacker, check_seat
from triptych.runtime.engine.sample import MAX_SPARSE
from triptych.runtime.engine.variants import Variant
from triptych.runtime.instance.plan import Draw, Row, Seat, StepPlan

pytestmark = pytest.mark.limit(300)

PROMPT = [17, 4, 200, 4, 90, 33]
COUNT = 8

KINDS = {
    "greedy": GREEDY,
    "temperature": SamplingParams(temperature=0.7, seed=2**64 - 3),
    "hot": SamplingParams(temperature=3.0, seed=5),
    "top_k": SamplingParams(temperature=2.0, top_k=7, seed=11),
    "top_p": SamplingParams(temperature=2.0, top_p=0.6, seed=12),
    "min_p": SamplingParams(temperature=2.0, min_p=0.3, seed=13),
    "all filters": SamplingParams(temperature=5.0, top_k=40, top_p=0.8, min_p=0.05, seed=14),
    "top_k 1": SamplingParams(temperature=2.0, top_k=1, seed=15),
    "nearly cold": SamplingParams(temperature=1e-30, seed=16),
    "repetition": SamplingParams(temperature=0.0, repetition_penalty=1.6),
    "frequency": SamplingParams(temperature=0.0, frequency_penalty=1.5),
    "presence": SamplingParams(temperature=0.8, presence_penalty=2.0, seed=17),
    "negative penalties": SamplingParams(temperature=1.0, frequency_penalty=-2.0, repetition_penalty=0.5, seed=18),
    "bias": SamplingParams(temperature=0.0, logit_bias=((5, 100.0), (6, 100.5))),
    "ban": SamplingParams(temperature=1.0, logit_bias=tuple((token, -100.0) for token in range(250)), seed=19),
    "everything": SamplingParams(
        temperature=1.3, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.4,
        presence_penalty=0.3, logit_bias=((9, 1.0),), seed=20,
    ),
}  # fmt: skip


def expected_tokens(
    params: SamplingParams, count: int = COUNT, sample: int = 0, prompt: list[int] = PROMPT
) -> list[int]:
    outputs: list[int] = []
    for _ in range(count):
        tokens = prompt + outputs
        logits = oracle.logits_of(tokens)[-1]
        position = len(tokens)
        outputs.append(oracle.draw(logits, params, prompt=prompt, outputs=outputs, position=position, sample=sample))
    return outputs


@pytest.mark.parametrize("first", range(0, len(KINDS), 4))
def test_each_parameter_draws_as_the_oracle_does_in_mixed_company(driver: Driver, first: int) -> None:
    names = list(KINDS)[first : first + 4]
    expected = {name: expected_tokens(KINDS[name]) for name in names}
    sequences = [sequence(slot, list(PROMPT), KINDS[name]) for slot, name in enumerate(names)]
    drawn = driver.generate(sequences, COUNT)
    assert dict(zip(names, drawn, strict=True)) == expected


@pytest.mark.parametrize("name", ["temperature", "all filters", "everything", "repetition"])
def test_a_row_alone_draws_what_it_draws_in_company(driver: Driver, name: str) -> None:
    expected = expected_tokens(KINDS[name])
    assert driver.generate([sequence(3, list(PROMPT), KINDS[name])], COUNT) == [expected]
    company = SamplingParams(temperature=1.0, logprobs=2, seed=1)  # forces the full variant on everybody
    sequences = [sequence(0, list(PROMPT), KINDS[name]), sequence(2, [1, 2, 3], company)]
    assert driver.generate(sequences, COUNT)[0] == expected


def test_samples_of_one_request_differ_by_their_index(driver: Driver) -> None:
    params = SamplingParams(temperature=2.5, seed=77, n=3)
    expected = [expected_tokens(params, 1, sample)[0] for sample in range(3)]
    seats = tuple(Seat(slot, slot, params) for slot in range(3))
    row = Row(0, tuple(PROMPT), 0, 0, (1, 2), draws=tuple(Draw(slot, len(PROMPT)) for slot in (2, 0, 1)))
    ((drawn,),) = [driver.tokens(row, seats=seats)]
    assert drawn == [expected[2], expected[0], expected[1]]
    assert len(set(expected)) > 1


def test_a_seat_with_outputs_goes_on_where_another_engine_stopped(driver: Driver) -> None:
    params = KINDS["everything"]
    expected = expected_tokens(params)
    seq = sequence(1, list(PROMPT), params, outputs=expected[:3])
    driver.generate([seq], COUNT - 3)
    assert seq.outputs == expected


def test_a_slot_forgets_its_previous_sample(driver: Driver) -> None:
    params = KINDS["repetition"]
    expected = expected_tokens(params)
    other = sequence(0, [7, 8, 9], params)
    driver.generate([other], 5)
    driver.generate([sequence(0, [7, 8, 9], KINDS["hot"])], 3)
    assert driver.generate([sequence(0, list(PROMPT), params)], COUNT) == [expected]


def test_forbidden_ids_are_not_drawn_below_their_position_and_free_from_there(driver: Driver) -> None:
    free = expected_tokens(GREEDY, 1)
    forbidden = tuple(free)
    outputs: list[int] = []
    for step in range(4):
        logits = oracle.logits_of(PROMPT + outputs)[-1]
        banned = forbidden if step < 2 else ()
        position = len(PROMPT) + step
        outputs.append(oracle.draw(logits, GREEDY, prompt=PROMPT, outputs=outputs, position=position, forbidden=banned))
    seq = sequence(0, list(PROMPT))
    seat = seq.seat(forbidden=forbidden, forbidden_until=len(PROMPT) + 2)
    assert driver.generate([seq], 4, seats=(seat,)) == [outputs]
    assert outputs[0] != free[0]


def test_logprobs_are_of_the_raw_logits(driver: Driver) -> None:
    params = SamplingParams(temperature=1.5, top_k=4, frequency_penalty=1.0, logit_bias=((3, 5.0),), logprobs=5, seed=4)
    expected = oracle.log_softmax(oracle.logits_of(PROMPT)[-1])
    seq = sequence(2, list(PROMPT), params)
    plain = sequence(0, list(PROMPT))
    result = driver.run(seq.row(6), plain.row(6), seats=(seq.seat(), plain.seat()))
    ((drawn,), (without,)) = (row.drawn for row in result.rows)
    assert without.logprobs is None and drawn.logprobs is not None
    assert drawn.logprobs.sampled == pytest.approx(expected[drawn.token], abs=2e-5)
    best = np.argsort(-expected)[:5]
    assert [token for token, _ in drawn.logprobs.top] == best.tolist()
    assert [value for _, value in drawn.logprobs.top] == pytest.approx(expected[best].tolist(), abs=2e-5)


def test_logprobs_zero_reports_the_drawn_token_alone(driver: Driver) -> None:
    seq = sequence(1, list(PROMPT), SamplingParams(temperature=0.0, logprobs=0))
    (row,) = driver.run(seq.row(6), seats=(seq.seat(),)).rows
    assert row.drawn[0].logprobs is not None and row.drawn[0].logprobs.top == ()


def test_results_do_not_change_when_a_later_plan_gives_the_slot_away(driver: Driver) -> None:
    seq = sequence(0, list(PROMPT), SamplingParams(temperature=0.0, logprobs=3))
    first = driver.engine.dispatch(driver.plan(seq.row(6), seats=(seq.seat(),)))
    second = driver.engine.dispatch(driver.plan(seats=(Seat(0, 0, GREEDY),)))
    logprobs = driver.engine.collect(first).rows[0].drawn[0].logprobs
    driver.engine.collect(second)
    assert logprobs is not None and len(logprobs.top) == 3


def variant_of(*seats: Seat, position: int = 10) -> Variant:
    packer = DrawPacker((1, 4), 4)
    for seat in seats:
        packer.tables.seat(seat)
    rows = tuple(Row(seat.slot, (1,), 0, 0, (1,), draws=(Draw(seat.slot, position),)) for seat in seats)
    batch = packer.pack(StepPlan(0, rows=rows))
    assert batch is not None
    return batch.variant


def test_the_least_variant_that_serves_every_row_is_taken() -> None:
    greedy, random, filtered = Seat(0, 0, GREEDY), Seat(1, 0, KINDS["hot"]), Seat(2, 0, KINDS["top_k"])
    forbidding = Seat(2, 0, GREEDY, forbidden=(1,), forbidden_until=11)
    assert variant_of(greedy) is Variant.GREEDY
    assert variant_of(greedy, random) is Variant.RANDOM
    assert variant_of(filtered, greedy, random) is Variant.FILTERED
    assert variant_of(Seat(0, 0, SamplingParams(temperature=0.0, top_p=0.5))) is Variant.GREEDY
    assert variant_of(greedy, random, Seat(3, 0, KINDS["bias"])) is Variant.FULL
    assert variant_of(greedy, Seat(3, 0, SamplingParams(temperature=0.0, logprobs=0))) is Variant.FULL
    assert variant_of(forbidding, position=10) is Variant.FULL
    assert variant_of(forbidding, position=11) is Variant.GREEDY


def test_seats_that_cannot_be_held_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match="slots are 0 to 3"):
        check_seat(Seat(4, 0, GREEDY), 4, 100)
    with pytest.raises(PlanError, match="token id 100; the vocabulary has 100"):
        check_seat(Seat(0, 0, GREEDY, prompt=(100,)), 4, 100)
    with pytest.raises(PlanError, match=f"the sampler holds {MAX_SPARSE}"):
        check_seat(Seat(0, 0, GREEDY, forbidden=tuple(range(MAX_SPARSE + 1))), 4, 1000)
    with pytest.raises(PlanError, match="slot 2 draws, but no seat"):
        DrawPacker((1,), 4).pack(StepPlan(0, rows=(Row(0, (1,), 0, 0, (1,), draws=(Draw(2, 1),)),)))


def test_the_driver_catches_a_wrong_token() -> None:
    """The oracle is not vacuous: another seed, sample or position draws other tokens."""
    params = KINDS["hot"]
    base = expected_tokens(params)
    assert expected_tokens(SamplingParams(temperature=3.0, seed=6)) != base
    assert expected_tokens(params, sample=1) != base
    assert isinstance(sequence(0, PROMPT), Seq)

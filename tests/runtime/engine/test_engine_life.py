"""An engine's life: what compiling reports, how a failure breaks it, how it is rebuilt, and which programs a role has."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from tests.runtime.engine import oracle
from tests.runtime.engine.driver import Driver, compiled, sequence, toy_config
from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.compile_guard import CompiledError, compile_count, no_compilation
from triptych.runtime.engine.engine import Engine

pytestmark = pytest.mark.limit(300)

# The fewest programs that still decode.
SMALL = Buckets((ExtendShape(4, 0, 16), ExtendShape(4, 16, 16)), draws=(4,))
PROMPT = [11, 200, 3, 77, 5]
SEEDED = SamplingParams(temperature=1.5, top_p=0.9, frequency_penalty=0.5, repetition_penalty=1.1, seed=8)


@pytest.fixture(scope="module")
def small() -> Engine:
    return compiled(buckets=SMALL, prompt_logprobs=False)


def seeded_tokens(count: int) -> list[int]:
    outputs: list[int] = []
    for _ in range(count):
        logits = oracle.logits_of(PROMPT + outputs)[-1]
        position = len(PROMPT) + len(outputs)
        outputs.append(oracle.draw(logits, SEEDED, prompt=PROMPT, outputs=outputs, position=position))
    return outputs


def test_compile_reports_every_program_once() -> None:
    loaded = oracle.toy()
    engine = Engine(toy_config(buckets=SMALL, prompt_logprobs=False), loaded, loaded.rules.mesh)
    seen: list[tuple[str, int, int]] = []
    report = engine.compile(lambda name, done, total: seen.append((name, done, total)))
    # decode, mixed; four samplers; copy, seat, pools, state
    assert report.programs == 2 + 4 + 4 == len(seen)
    assert [done for _, done, _ in seen] == list(range(1, 11)) and {total for _, _, total in seen} == {10}
    assert "extend decode=4 prefill=0 width=16" in {name for name, _, _ in seen}
    assert 0 < report.lowering_seconds <= report.seconds


@pytest.mark.parametrize("tp", [2, 4, pytest.param(3, marks=pytest.mark.slow)])
def test_tokens_do_not_depend_on_the_number_of_devices(tp: int) -> None:
    expected = [oracle.greedy(PROMPT, 6), seeded_tokens(6)]
    driver = Driver(compiled(tp, buckets=SMALL, prompt_logprobs=False))
    assert driver.engine.pools[0][0].sharding.num_devices == tp
    assert driver.generate([sequence(0, list(PROMPT)), sequence(1, list(PROMPT), SEEDED)], 6) == expected
    shardings = {array.sharding for pair in driver.engine.pools for array in pair}
    assert shardings == {oracle.toy(tp).rules.pool()}


def test_a_prefill_instance_takes_decode_shaped_rows() -> None:
    buckets = Buckets((ExtendShape(4, 16, 16), ExtendShape(0, 6, 16)), draws=(4,))
    driver = Driver(compiled(roles=frozenset({Role.PREFILL}), buckets=buckets, prompt_logprobs=False))
    expected = [oracle.greedy([token], 1) for token in range(40, 44)]
    sequences = [sequence(number, [40 + number]) for number in range(4)]
    seats = tuple(seq.seat() for seq in sequences)
    assert driver.tokens(*(seq.row(1) for seq in sequences), seats=seats) == expected
    a, b = sequence(0, [42]), sequence(1, list(PROMPT))
    assert driver.tokens(b.row(5), a.row(1)) == [oracle.greedy(PROMPT, 1), oracle.greedy([42], 1)]


def test_a_failed_call_breaks_the_engine_until_it_is_rebuilt_without_compiling(small: Engine) -> None:
    expected = oracle.greedy(PROMPT, 4)
    driver = Driver(small)
    seq = sequence(0, list(PROMPT))
    pending = small.dispatch(driver.plan(seq.row(5), seats=(seq.seat(),)))
    for pair in small.pools:
        for array in pair:
            array.delete()  # what is left of a pool whose donating call failed
    with pytest.raises(EngineError, match="KV pool is lost"):
        small.dispatch(driver.plan(seq.carried_row()))
    assert small.broken is not None
    with pytest.raises(EngineError, match="lost"):
        small.collect(pending)
    with pytest.raises(EngineError, match="rebuild it"):
        small.dispatch(driver.plan())
    with no_compilation():
        small.rebuild()
    assert small.broken is None
    assert driver.generate([sequence(0, list(PROMPT))], 4) == [expected]


def test_a_plan_that_does_not_fit_breaks_the_engine_too(small: Engine) -> None:
    driver = Driver(small)
    rows = tuple(sequence(number, list(PROMPT)).row(5, draws=False) for number in range(4))
    with pytest.raises(EngineError, match="at most 3 prefill rows"):
        small.dispatch(driver.plan(*rows))
    assert small.broken is not None
    small.rebuild()


def test_rebuilding_forgets_seats(small: Engine) -> None:
    driver = Driver(small)
    seq = sequence(0, list(PROMPT))
    driver.run(seq.row(5), seats=(seq.seat(),))
    small.rebuild()
    with pytest.raises(EngineError, match="no seat was given"):
        driver.run(sequence(0, list(PROMPT)).row(5))
    small.rebuild()


def test_an_engine_that_was_not_compiled_says_so() -> None:
    loaded = oracle.toy()
    engine = Engine(toy_config(), loaded, loaded.rules.mesh)
    with pytest.raises(EngineError, match="not compiled yet"):
        engine.dispatch(Driver(engine).plan())


def test_weights_on_another_mesh_are_refused() -> None:
    with pytest.raises(ValueError, match="the weights lie on mesh"):
        Engine(toy_config(), oracle.toy(2), oracle.toy(1).rules.mesh)


def test_the_guard_sees_an_eager_operation() -> None:
    before = compile_count()
    with pytest.raises(CompiledError, match="programs were compiled"), no_compilation():
        jnp.arange(3 * 37).reshape(3, 37).block_until_ready()
    assert compile_count() > before

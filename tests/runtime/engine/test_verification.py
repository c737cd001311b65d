"""An instance that guesses draws on the device what one that does not draws: same engine, same requests, fewer steps."""

from __future__ import annotations

import random
from collections import deque

import pytest

from tests.runtime.engine.driver import BOTH, PAGE, compiled
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import Request, TokenOut
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import StartLocal
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import Command, DeviceReady, Emit, StepDone
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.instance.speculation import Speculation
from triptych.tools.bench.speculation import compare

pytestmark = pytest.mark.limit(300)  # the first test compiles an engine

GUESSING = Speculation(3, longest=3, shortest=1)
SHAPES = tuple(ExtendShape(rows, tokens, 16) for rows, tokens in ((4, 0), (16, 0), (4, 16)))
PROMPT = (7, 8, 9, 10, 11, 7, 8, 9, 10, 11, 7, 8)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return compiled(buckets=Buckets(SHAPES, draws=(16,)), speculative_tokens=GUESSING.tokens, prompt_logprobs=False)


class NoProbe:
    def push(self, token: int) -> str | None:
        return "stop" if token % 16 == 3 else None


def serve(
    engine: Engine, speculation: Speculation | None, requests: list[Request], num_pages: int = 80
) -> tuple[dict[tuple[str, int], list[TokenOut]], int, InstanceCore]:
    """(tokens of each sample, steps, the core) of all requests at once, one step ahead of what is read."""
    core = InstanceCore(
        InstanceConfig(
            InstanceRef("i", 1), "", "", BOTH, num_pages, PAGE, 4, 64, chunk_tokens=16, max_prefill_rows=3, speculation=speculation
        ),
        stop_probe=lambda stops: NoProbe(),
        random=random.Random(1),
    )  # fmt: skip
    tokens: dict[tuple[str, int], list[TokenOut]] = {}
    in_flight: deque = deque()
    steps = 0
    answers = [answer for request in requests for answer in core.handle(Command(StartLocal(request)), 0.0)]
    with no_compilation():
        while True:
            answers += core.handle(DeviceReady(), 0.0)
            planned = bool(answers) and isinstance(answers[-1], StepPlan)
            for answer in answers:
                if isinstance(answer, StepPlan):
                    in_flight.append(engine.dispatch(answer))
                    steps += 1
                elif isinstance(answer, Emit):
                    for token in answer.tokens:
                        tokens.setdefault((token.request, token.sample), []).append(token)
            answers = []
            if len(in_flight) == 2 or (in_flight and not planned):
                answers = list(core.handle(StepDone(engine.collect(in_flight.popleft())), 0.0))
                core.audit()
            elif not planned:
                break
    assert core.resources().idle
    return tokens, steps, core


def request(name: str, **params) -> Request:
    return Request(name, "gw", "toy", PROMPT, SamplingParams(**({"max_tokens": 40, "ignore_eos": True} | params)))


BATCHES = {
    "greedy": [request("a", temperature=0.0)],
    "greedy together": [request(name, temperature=0.0, max_tokens=tokens) for name, tokens in (("a", 40), ("b", 17), ("c", 3))],
    "seeded": [request("a", temperature=0.3, seed=5), request("b", temperature=0.4, seed=6, top_k=8, top_p=0.9)],
    "samples": [request("a", temperature=0.3, seed=5, n=3)],
    "stop": [request("a", temperature=0.0, stop=("x",)), request("b", temperature=0.2, seed=1, stop_token_ids=tuple(range(0, 256, 24)), min_tokens=9)],
    "logprobs": [request("a", temperature=0.0, logprobs=2), request("b", temperature=0.3, seed=3, logit_bias=((7, 3.0),))],
    "penalised beside": [request("a", temperature=0.0), request("b", temperature=0.5, seed=2, frequency_penalty=0.5)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "num_pages"), [*((name, 80) for name in BATCHES), ("greedy together", 18), ("samples", 18)]
)
def test_tokens_are_those_of_plain_decoding(engine: Engine, name: str, num_pages: int) -> None:
    plain, plain_steps, _ = serve(engine, None, BATCHES[name], num_pages)
    engine.rebuild()
    guessed, steps, core = serve(engine, GUESSING, BATCHES[name], num_pages)
    assert plain.keys() == guessed.keys()
    for key, expected in plain.items():
        assert [(t.token, t.position, t.finish) for t in guessed[key]] == [
            (t.token, t.position, t.finish) for t in expected
        ]
        for one, other in zip(guessed[key], expected, strict=True):
            assert (one.logprobs is None) == (other.logprobs is None)
            if one.logprobs is not None and other.logprobs is not None:
                assert one.logprobs.sampled == pytest.approx(other.logprobs.sampled, abs=1e-4)
    counts = core.speculated
    assert counts.drafted > 0
    if name.startswith("greedy") and num_pages == 80:
        assert counts.accepted > 0 and steps < plain_steps


def test_the_benchmark_of_guesses_counts_the_steps_that_they_save(engine: Engine) -> None:
    """Here, because the engine is."""
    found = compare(engine, "repeats", PROMPT, 30, GUESSING)
    assert found.differs_at is None
    assert found.plain.tokens == found.plain.steps == found.guessed.tokens == 29 and found.plain.drafted == 0
    assert 0 < found.guessed.accepted <= 29 - found.guessed.steps

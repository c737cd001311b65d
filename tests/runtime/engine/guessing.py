"""Requests served by one engine and one instance on it, to compare those that guess tokens with those that do not."""

from __future__ import annotations

import random
from collections import deque

import pytest

from tests.runtime.engine.driver import BOTH, PAGE
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import Request, TokenOut
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import StartLocal
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import Command, DeviceReady, Emit, StepDone
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.instance.speculation import Speculation

PROMPT = (7, 8, 9, 10, 11, 7, 8, 9, 10, 11, 7, 8)
Outputs = dict[tuple[str, int], list[TokenOut]]


class NoProbe:
    def push(self, token: int) -> str | None:
        return "stop" if token % 16 == 3 else None


def serve(
    engine: Engine, speculation: Speculation | None, requests: list[Request], num_pages: int = 80
) -> tuple[Outputs, int, InstanceCore]:
    """(tokens of each sample, steps, the core) of all requests at once, one step ahead of what is read."""
    core = InstanceCore(
        InstanceConfig(
            InstanceRef("i", 1), "", "", BOTH, num_pages, PAGE, 4, 64, chunk_tokens=16, max_prefill_rows=3, speculation=speculation
        ),
        stop_probe=lambda stops: NoProbe(),
        random=random.Random(1),
    )  # fmt: skip
    tokens: Outputs = {}
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


def assert_same(got: Outputs, expected: Outputs) -> None:
    """Token for token; log-probabilities within what steps of other sizes round."""
    assert got.keys() == expected.keys()
    for key, tokens in expected.items():
        assert [(t.token, t.position, t.finish) for t in got[key]] == [(t.token, t.position, t.finish) for t in tokens]
        for one, other in zip(got[key], tokens, strict=True):
            assert (one.logprobs is None) == (other.logprobs is None)
            if one.logprobs is not None and other.logprobs is not None:
                assert one.logprobs.sampled == pytest.approx(other.logprobs.sampled, abs=1e-4)


def compared(
    engine: Engine, speculation: Speculation, requests: list[Request], num_pages: int = 80
) -> tuple[int, int, InstanceCore]:
    """(steps without guesses, steps with them, the core that guessed) of runs that gave the same; the engine begins anew between them."""
    plain, plain_steps, _ = serve(engine, None, requests, num_pages)
    engine.rebuild()
    guessed, steps, core = serve(engine, speculation, requests, num_pages)
    assert_same(guessed, plain)
    assert core.speculated.drafted > 0
    return plain_steps, steps, core

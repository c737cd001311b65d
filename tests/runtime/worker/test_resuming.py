"""The real engine draws the very same tokens when a request begins again from what its client has seen: over P->D and locally.

A real worker with toy instances, commanded by a toy scheduler over the wire; one run without a cut is the oracle for all cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.runtime.worker.bench import Bench, Samples
from triptych.runtime.core.request import Finish, FinishReason, Request, SampleState
from triptych.runtime.core.sampling import SamplingParams

PROMPT = tuple(range(40, 77))
LETTERS = tuple((ord(letter), 25.0) for letter in "abcdefgh")

Run = Callable[[Bench, Request, tuple[SampleState, ...]], Samples]
WAYS: dict[str, Run] = {"split": Bench.run_split, "local": Bench.run_local}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "seed": 11, "top_p": 0.9, "logprobs": 2},
    "penalties": {"seed": 5, "presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    "bias": {"seed": 7, "logit_bias": LETTERS},
    "min_tokens": {"seed": 9, "min_tokens": 12, "logit_bias": ((258, 12.0),), "ignore_eos": False},
    "three samples": {"seed": 3, "n": 3, "logit_bias": LETTERS, "stop_token_ids": (ord("c"),), "min_tokens": 3},
    "prompt logprobs": {"temperature": 0.0, "prompt_logprobs": 1},
}


@pytest.fixture(scope="module", autouse=True)
def compiled_before(bench: Bench) -> int:
    """Programs that this process compiled after the worker was ready and before this file: other tests of the process compile, too."""
    return next(iter(bench.wait_idle().values())).counters["compiled_after_ready"]


def _request(case: str, **changes: Any) -> Request:
    params = {"max_tokens": 24, "ignore_eos": True} | CASES.get(case, {}) | changes
    return Request(f"{case} {changes}", "gw", "toy", PROMPT, SamplingParams(**params))


def _cut(full: Samples, counts: list[int]) -> tuple[SampleState, ...]:
    """What the client has seen of each sample after so many tokens."""
    return tuple(
        SampleState(
            sample,
            tuple(token.token for token in full[sample][:count]),
            full[sample][count - 1].finish if count >= len(full[sample]) else None,
        )
        for sample, count in enumerate(counts)
    )


def _same(seen: Samples, full: Samples, counts: list[int]) -> None:
    for sample, count in enumerate(counts):
        rest = [token._replace(request="", attempt=0, logprobs=None) for token in full[sample][count:]]
        assert [token._replace(request="", attempt=0, logprobs=None) for token in seen[sample]] == rest
        for mine, theirs in zip(seen[sample], full[sample][count:], strict=True):
            if theirs.logprobs is not None:
                assert mine.logprobs is not None
                assert mine.logprobs.sampled == pytest.approx(theirs.logprobs.sampled, abs=1e-4)


@pytest.mark.limit(300)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_a_request_that_begins_again_draws_the_very_same_tokens(bench: Bench, case: str, way: str) -> None:
    first = replace(_request(case), id=f"{case} {way}")
    full = bench.run_local(replace(first, id=f"{first.id} oracle"), ())
    n = first.sampling.n
    lengths = [len(full[sample]) for sample in range(n)]
    for attempt, share in enumerate((0.0, 0.3, 0.8), start=2):
        request = replace(first, attempt=attempt)
        counts = [max(1, int(share * max(lengths))) for _ in range(n)]
        counts = [min(count, length) for count, length in zip(counts, lengths, strict=True)]
        resumed = _cut(full, counts)
        if all(sample.finish for sample in resumed):
            continue
        _same(WAYS[way](bench, request, resumed), full, counts)
        assert not bench.prompts[request.id, attempt].prompt_logprobs
    if n > 1:
        assert len(set(lengths)) > 1, "no sample ends before the others: the case shows less than it should"


@pytest.mark.limit(300)
@pytest.mark.parametrize("way", WAYS)
def test_a_stop_string_that_spans_the_cut_is_found(bench: Bench, way: str) -> None:
    plain = replace(_request("bias"), id=f"stop {way} oracle")
    text = "".join(chr(token.token) for token in bench.run_local(plain, ())[0])
    at = next(i for i in range(6, len(text) - 3) if text.index(text[i : i + 3]) == i)
    stop = text[at : at + 3]
    request = replace(plain, id=f"stop {way}", attempt=2, sampling=replace(plain.sampling, stop=(stop,)))
    for seen in (at + 1, at + 2):
        attempt = replace(request, attempt=seen)
        resumed = (SampleState(0, tuple(map(ord, text[:seen]))),)
        tokens = WAYS[way](bench, attempt, resumed)[0]
        assert "".join(chr(token.token) for token in tokens) == text[seen : at + 3]
        assert tokens[-1].finish == Finish(FinishReason.STOP, stop)


@pytest.mark.limit(300)
def test_nothing_is_held_and_nothing_compiled_afterwards(bench: Bench, compiled_before: int) -> None:
    states = bench.wait_idle().values()
    assert all(state.counters["compiled_after_ready"] == compiled_before for state in states)

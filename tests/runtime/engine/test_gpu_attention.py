"""An engine whose decoder attends with the GPU kernels, interpreted, draws the reference's tokens; also where a prompt is alone in its step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.engine.driver import PAGE, Driver, compiled, sequence
from tests.runtime.engine.oracle import greedy, toy
from triptych.models.decoder import Layer
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.config import engine_config
from triptych.runtime.engine.decoders import self_group
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.programs import Programs

PROMPTS = ([11, 200, 3, 77, 5, 8, 41], [9, 8, 7, 6, 5, 4, 3, 2, 1, 250, 251, 4, 99])
ALONE = ExtendShape(0, 16, 6, fresh=True)


@pytest.fixture(scope="module", params=[False, True], ids=["whole last layer", "last tokens"])
def engine(request: pytest.FixtureRequest) -> Engine:
    last = request.param
    shapes = (ExtendShape(2, 0, 6), ExtendShape(2, 16, 6, last_only=last), replace(ALONE, last_only=last))
    return compiled(
        2, attention="gpu", max_num_seqs=2, max_model_len=6 * PAGE, buckets=Buckets(shapes, draws=(2,)), prompt_logprobs=False
    )  # fmt: skip


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone in its step"])
def test_tokens_are_those_of_the_reference(engine: Engine, alone: bool) -> None:
    driver, expected = Driver(engine), [greedy(prompt, 6) for prompt in PROMPTS]
    groups = [[0], [1]] if alone else [[0, 1]]
    for group in groups:
        sequences = [sequence(number, list(PROMPTS[number])) for number in group]
        assert driver.generate(sequences, 6) == [expected[number] for number in group]


@pytest.mark.parametrize("attention", ["gpu", "reference"])
def test_layers_of_a_kind_are_traced_once(monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    """Tracing and lowering take most of a GPU's start."""
    traced, call = [], Layer.__call__
    monkeypatch.setattr(Layer, "__call__", lambda self, *arguments: traced.append(1) or call(self, *arguments))
    config = engine_config(
        num_pages=9, max_num_seqs=3, max_model_len=4 * PAGE, chunk_tokens=8, page_size=PAGE, attention=attention
    )
    loaded = toy()
    programs = Programs(loaded.structure, self_group(loaded.config, config.kv_dtype), config).all()
    next(program for program in programs if program.key[0] == "extend").lower()
    assert loaded.config.num_layers > 1 == len(traced)

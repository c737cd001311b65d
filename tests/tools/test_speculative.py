"""`--speculative` reaches the instances, and what cannot be is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import parse
from triptych.runtime.engine.config import engine_config
from triptych.runtime.instance.speculation import Speculation
from triptych.runtime.worker.config import WorkerConfig
from triptych.tools.config import ServeConfig
from triptych.tools.worker import worker_config


def worker(**settings) -> WorkerConfig:
    return worker_config(ServeConfig(**settings), parse("1P1D").instances(), "w", "s", "127.0.0.1", "cpu")


def test_nothing_is_guessed_unless_asked_for() -> None:
    assert worker().speculation is None
    assert worker(speculative="ngram").speculation == Speculation(4)
    assert worker(speculative="ngram", speculative_tokens=2).speculation == Speculation(2)
    asked = worker(speculative="draft", speculative_model="dummy:toy-draft", speculative_tokens=3)
    assert asked.speculation == Speculation(3, model="dummy:toy-draft")


def test_wrong_settings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="speculative_tokens is 0"):
        ServeConfig(speculative="ngram", speculative_tokens=0)
    halves: list[dict[str, Any]] = [
        {"speculative": "draft"},
        {"speculative": "ngram", "speculative_model": "m"},
        {"speculative_model": "m"},
    ]
    for settings in halves:
        with pytest.raises(ConfigError, match="a draft model needs both"):
            ServeConfig(**settings)
    with pytest.raises(ConfigError, match="leave --speculative off"):
        worker(speculative="ngram", step_times=str(tmp_path / "table.json"))


def test_only_engines_that_decode_have_programs_for_guesses() -> None:
    limits: dict[str, Any] = {
        "num_pages": 99,
        "max_num_seqs": 3,
        "max_model_len": 100,
        "chunk_tokens": 20,
        "speculative_tokens": 2,
    }
    prefill, decode = (engine_config(**limits, roles=frozenset({role})) for role in (Role.PREFILL, Role.DECODE))
    assert (prefill.speculative_tokens, prefill.max_draws) == (0, 3)
    assert (decode.speculative_tokens, decode.max_draws) == (2, 9)
    assert max(shape.decode_rows for shape in decode.buckets.extend) == decode.buckets.draws[-1] == 9

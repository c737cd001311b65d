"""A paced engine gives a step back when the device that it stands in for would, one step after another."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.paced import PacedEngine
from triptych.runtime.engine.results import PendingStep
from triptych.runtime.instance.plan import StepPlan, StepResult


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> PacedEngine:
    """Whose own steps take no time; step `n` is told to take n tenths of a second."""
    monkeypatch.setattr(Engine, "__init__", lambda self, *parts: None)
    monkeypatch.setattr(Engine, "dispatch", lambda self, plan: PendingStep(plan, None))
    monkeypatch.setattr(Engine, "collect", lambda self, step: StepResult(step.plan.id, ()))
    nothing = cast(Any, None)
    return PacedEngine(nothing, nothing, nothing, lambda plan: plan.id / 10)


def test_steps_follow_one_another(engine: PacedEngine, monkeypatch: pytest.MonkeyPatch):
    began = time.monotonic()
    with monkeypatch.context() as awake:
        awake.setattr(time, "sleep", lambda seconds: pytest.fail("a dispatch waits for nothing"))
        first, second = engine.dispatch(StepPlan(1, ())), engine.dispatch(StepPlan(2, ()))
    assert engine.collect(first).id == 1
    assert 0.1 <= time.monotonic() - began
    assert engine.collect(second).id == 2
    assert 0.3 <= time.monotonic() - began


def test_time_in_which_nothing_ran_is_not_saved_up(engine: PacedEngine):
    engine.collect(engine.dispatch(StepPlan(1, ())))
    time.sleep(0.1)
    began = time.monotonic()
    engine.collect(engine.dispatch(StepPlan(1, ())))
    assert 0.1 <= time.monotonic() - began

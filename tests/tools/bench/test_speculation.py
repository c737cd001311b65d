"""`triptych bench-speculation` says what is wrong before it compiles anything; its figures are in tests/runtime/engine/test_verification.py
and test_draft_model.py."""

from __future__ import annotations

import pytest

from triptych.runtime.engine.engine import Engine
from triptych.tools.bench.speculation import Comparison, Run, _line
from triptych.tools.cli import main


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        (["--max-model-len", "65"], "task random has 64 tokens; raise --max-model-len"),
        (["--draft", "dummy:smollm2-135m"], "cannot guess for dummy:toy: its vocabulary has 49152 tokens"),
        (["--draft", "dummy:nobody"], "no preset 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(
    asked: list[str], wrong: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("an engine is compiled")

    monkeypatch.setattr(Engine, "compile", never)
    assert main(["bench-speculation", "dummy:toy", *asked]) == 2
    assert wrong in capsys.readouterr().err


def test_a_line_says_how_many_steps_were_saved_and_whether_the_tokens_are_the_same() -> None:
    plain, guessed = Run(10, 10, 0.1, 0, 0), Run(10, 4, 0.05, 8, 6)
    line = _line(Comparison("copy", plain, guessed, None))
    assert "10 ->    4 (2.50 tokens a step)" in line and "accepted 6/8" in line and "same tokens" in line
    assert "differ from token 3" in _line(Comparison("copy", plain, guessed, 3))

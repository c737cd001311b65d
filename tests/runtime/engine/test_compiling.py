"""Programs that the compiler fails with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from triptych.runtime.engine.compiling import Program, compile_programs, usual_threads


class Failing(Program):
    """Fails to compile so many times."""

    failures = 0

    def lower(self) -> jax.stages.Lowered:
        real, program = super().lower(), self

        class Lowered:
            def compile(self, options: object) -> jax.stages.Compiled:
                if program.failures:
                    object.__setattr__(program, "failures", program.failures - 1)
                    raise jax.errors.JaxRuntimeError("INTERNAL: Failed to launch ptxas")
                return real.compile()

        return Lowered()  # pyright: ignore[reportReturnType]


def _programs(failures: int) -> list[Program]:
    number, sharding = jax.ShapeDtypeStruct((), jnp.float32), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    failing, other = (
        make((name,), lambda x: x + 1, (number,), sharding) for make, name in ((Failing, "a"), (Program, "b"))
    )
    object.__setattr__(failing, "failures", failures)
    return [failing, other]


def test_what_did_not_compile_is_compiled_again_alone() -> None:
    told: list[tuple[str, int]] = []
    compiled, report = compile_programs(_programs(1), 2, lambda name, done, total: told.append((name, done)))
    assert told == [("b", 1), ("a", 2)] and report.programs == 2
    assert [float(compiled[key,](1.0)) for key in ("a", "b")] == [2.0, 2.0]


def test_what_fails_again_is_an_error() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="ptxas"):
        compile_programs(_programs(2), 2, lambda name, done, total: None)


def test_threads_leave_cores_to_the_rest_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert (usual_threads("cpu"), usual_threads("gpu")) == (2, 10)
    monkeypatch.setattr("os.cpu_count", lambda: 200)
    assert usual_threads("tpu") == 16

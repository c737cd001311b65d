"""Executables that a later start finds on disk."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.runtime.engine import kept_programs
from triptych.runtime.engine.compiling import CompileReport, Executable, Program, compile_programs
from triptych.runtime.engine.kept_programs import FORGOTTEN_AFTER, KeptPrograms, described

DEVICES = jax.devices()[:2]
MESH = Mesh(np.array(DEVICES), ("tp",))
SPLIT, WHOLE = NamedSharding(MESH, PartitionSpec("tp")), NamedSharding(MESH, PartitionSpec())


@pytest.fixture(autouse=True)
def without_the_persistent_cache() -> Iterator[None]:
    """What it answers is not kept."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    _reset()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    _reset()


def _reset() -> None:
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()  # jax looks only once whether it is enabled


def _program(run: Callable[..., Any] | None = None, size: int = 4, **changes: Any) -> Program:
    """(pool, row) -> (pool with the row added, its sum); the pool is spread over two devices and donated."""

    def added(pool: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        pool = pool + row
        return pool, pool.sum()

    pool = jax.ShapeDtypeStruct((size, 8), jnp.float32, sharding=SPLIT)
    row = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=WHOLE)
    program = Program(("add", size), run or added, (pool, row), (SPLIT, WHOLE), donated=(0,))
    return dataclasses.replace(program, **changes)


def _untraceable(*arguments: Any) -> Any:
    raise AssertionError("this was traced")


def _compile(
    folder: Path, *programs: Program, made_from: object = "toy"
) -> tuple[dict[tuple[Any, ...], Executable], CompileReport]:
    kept = KeptPrograms(folder, made_from, DEVICES)
    return compile_programs(programs, 2, lambda name, done, total: None, kept)


def test_a_second_start_traces_nothing(tmp_path: Path) -> None:
    _, first = _compile(tmp_path, _program())
    told: list[tuple[str, int, int]] = []
    kept = KeptPrograms(tmp_path, "toy", DEVICES)
    compiled, second = compile_programs([_program(_untraceable)], 2, lambda *at: told.append(at), kept)
    assert (first.from_cache, second.from_cache, second.programs) == (0, 1, 1)
    assert told == [("add 4", 1, 1)]

    pool = jax.device_put(np.ones((4, 8), np.float32), SPLIT)
    out, total = compiled["add", 4](pool, np.arange(8, dtype=np.float32))
    assert out.sharding == SPLIT and np.array_equal(out, np.ones((4, 8)) + np.arange(8)) and float(total) == 144.0
    assert pool.is_deleted(), "the pool was donated"


@pytest.mark.parametrize(
    "other",
    [
        _program(_untraceable, size=8),
        _program(_untraceable, key=("add", 5)),
        _program(_untraceable, donated=()),
        _program(_untraceable, outputs=(WHOLE, WHOLE)),
        _program(_untraceable, options={"xla_cpu_enable_fast_math": True}),
    ],
    ids=["arguments", "name", "donations", "outputs", "options"],
)
def test_another_program_is_not_found(tmp_path: Path, other: Program) -> None:
    _compile(tmp_path, _program())
    with pytest.raises(AssertionError, match="traced"):
        _compile(tmp_path, other)


def test_a_program_made_from_something_else_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(tmp_path, _program())
    with pytest.raises(AssertionError, match="traced"):
        _compile(tmp_path, _program(_untraceable), made_from="another toy")
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="traced"):
        patch.setattr(kept_programs, "_makers", lambda: "other sources")
        _compile(tmp_path, _program(_untraceable))
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="traced"):
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_cpu_enable_fast_math=true")
        _compile(tmp_path, _program(_untraceable))


@pytest.mark.parametrize("damage", [b"", b"\0" * 64], ids=["cut off", "overwritten"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    _compile(tmp_path, _program())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + damage)
    _, report = _compile(tmp_path, _program())
    assert report.from_cache == 0 and "damaged" in caplog.text
    assert _compile(tmp_path, _program(_untraceable))[1].from_cache == 1


def test_what_cannot_be_loaded_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(tmp_path, _program())

    def fails(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("an executable of another day")

    monkeypatch.setattr(kept_programs, "deserialize_and_load", fails)
    assert _compile(tmp_path, _program())[1].from_cache == 0


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    compiled, _ = _compile(tmp_path / "file", _program())
    assert compiled and "not kept" in caplog.text


def test_what_failed_in_use_is_not_there_for_the_next_start(tmp_path: Path) -> None:
    _compile(tmp_path, _program(), _program(size=8))
    kept = KeptPrograms(tmp_path, "toy", DEVICES)
    assert kept.load(_program()) is not None
    kept.distrust()
    assert kept.load(_program()) is None and kept.load(_program(size=8)) is not None


def test_what_nobody_took_for_a_month_is_deleted_by_who_compiles(tmp_path: Path) -> None:
    _compile(tmp_path, _program())
    (old,) = tmp_path.iterdir()
    long_ago = time.time() - FORGOTTEN_AFTER - 60
    os.utime(old, (long_ago, long_ago))
    _compile(tmp_path, _program(size=8))
    assert not old.exists() and len(list(tmp_path.iterdir())) == 1


def test_a_taken_file_is_as_good_as_new(tmp_path: Path) -> None:
    _compile(tmp_path, _program())
    (file,) = tmp_path.iterdir()
    os.utime(file, (0, 0))
    _compile(tmp_path, _program(_untraceable))
    assert time.time() - file.stat().st_mtime < 3600


class _Colour(Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class _Thing:
    sizes: tuple[int, ...]
    names: frozenset[str]
    colour: _Colour | None = None


def test_descriptions_depend_on_values_alone() -> None:
    names = [f"name {number}" for number in range(20)]
    thing = _Thing((1, 2), frozenset(names), _Colour.RED)
    assert described(thing) == described(_Thing((1, 2), frozenset(reversed(names)), _Colour.RED))
    assert described({"a": 1, "b": 2}) == described({"b": 2, "a": 1})
    others = [
        _Thing((1, 3), frozenset(names), _Colour.RED),
        _Thing((1, 2), frozenset(names)),
        _Thing((1, 2), frozenset()),
    ]
    assert len({described(one) for one in (thing, *others)}) == 4


@pytest.mark.parametrize(
    "value", [object(), np.arange(3), {"inside": (jnp.zeros(2),)}], ids=["object", "array", "inside"]
)
def test_what_has_no_description_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="no description"):
        KeptPrograms(tmp_path, value, DEVICES)


def test_a_program_that_has_no_description_is_compiled_and_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange = _program(key=("add", object()))
    compiled, report = _compile(tmp_path, strange)
    assert strange.key in compiled and report.from_cache == 0
    assert "not kept" in caplog.text and not list(tmp_path.iterdir())


def test_an_engine_that_has_no_description_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert kept_programs.kept_beside_the_cache({"inside": object()}, DEVICES) is None
    assert "programs are not kept" in caplog.text
    assert kept_programs.kept_beside_the_cache({"inside": np.float32(1)}, DEVICES) is not None

"""Executables that a later start finds on disk."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.runtime.engine import kept_programs
from triptych.runtime.engine.compiling import CompileReport, Executable, Program, compile_programs
from triptych.runtime.engine.kept_programs import FORGOTTEN_AFTER, KeptPrograms, described

DEVICES = jax.devices()[:2]
MESH = Mesh(np.array(DEVICES), ("tp",))
SPLIT, WHOLE = NamedSharding(MESH, PartitionSpec("tp")), NamedSharding(MESH, PartitionSpec())


@contextmanager
def _persistent_cache(folder: Path | str) -> Iterator[None]:
    """An empty one, so that what is compiled is compiled here."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with _persistent_cache(tmp_path_factory.mktemp("compiled")):
        yield


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
    folder: Path, *programs: Program, made_from: object = "toy", environment: tuple[tuple[str, str], ...] = ()
) -> tuple[dict[tuple[Any, ...], Executable], CompileReport]:
    kept = KeptPrograms(folder, made_from, DEVICES, environment)
    return compile_programs(programs, 2, lambda name, done, total: None, kept)


def test_a_second_start_traces_nothing(tmp_path: Path) -> None:
    _, first = _compile(tmp_path, _program())
    told: list[tuple[str, int, int]] = []
    kept = KeptPrograms(tmp_path, "toy", DEVICES, ())
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
        patch.setattr(kept_programs, "MADE_BY", ("compilers", "other sources"))
        _compile(tmp_path, _program(_untraceable))
    with pytest.raises(AssertionError, match="traced"):
        _compile(tmp_path, _program(_untraceable), environment=(("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),))


@pytest.mark.parametrize("damage", [b"", b"\0" * 64], ids=["cut off", "overwritten"])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    kept = tmp_path / "kept"
    _compile(kept, _program())
    for file in kept.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + damage)
    with _persistent_cache(tmp_path / "empty"):
        assert _compile(kept, _program())[1].from_cache == 0 and "damaged" in caplog.text
    assert _compile(kept, _program(_untraceable))[1].from_cache == 1


def test_what_cannot_be_loaded_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(tmp_path / "kept", _program())

    def fails(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("an executable of another day")

    monkeypatch.setattr(kept_programs, "deserialize_and_load", fails)
    with _persistent_cache(tmp_path / "empty"):
        assert _compile(tmp_path / "kept", _program())[1].from_cache == 0


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    compiled, _ = _compile(tmp_path / "file", _program())
    assert compiled and "not kept" in caplog.text


def test_what_failed_in_use_is_not_there_for_the_next_start(tmp_path: Path) -> None:
    _compile(tmp_path, _program(), _program(size=8))
    kept = KeptPrograms(tmp_path, "toy", DEVICES, ())
    assert kept.load(_program()) is not None
    kept.distrust()
    assert kept.load(_program()) is None and kept.load(_program(size=8)) is not None
    assert len(list(tmp_path.iterdir())) == 2, "one executable is left, under two names"


def test_what_is_damaged_is_not_found_by_its_text_either(tmp_path: Path) -> None:
    _compile(tmp_path, _program())
    for file in tmp_path.iterdir():
        file.write_bytes(b"nothing")
    assert _compile(tmp_path, _program())[1].from_cache == 1, "by the persistent cache"
    assert not list(tmp_path.iterdir())


def test_what_nobody_took_for_a_month_is_deleted_by_who_compiles(tmp_path: Path) -> None:
    _compile(tmp_path, _program())
    old, long_ago = set(tmp_path.iterdir()), time.time() - FORGOTTEN_AFTER - 60
    for file in old:
        os.utime(file, (long_ago, long_ago))
    _compile(tmp_path, _program(size=8))
    assert len(old) == 2 and len(list(tmp_path.iterdir())) == 2 and not old & set(tmp_path.iterdir())


def test_a_taken_file_is_as_good_as_new(tmp_path: Path) -> None:
    _compile(tmp_path, _program())
    for file in tmp_path.iterdir():
        os.utime(file, (0, 0))
    _compile(tmp_path, _program(_untraceable))
    assert all(time.time() - file.stat().st_mtime < 3600 for file in tmp_path.iterdir()), "under both names"


def test_what_the_persistent_cache_has_is_found_by_its_text(tmp_path: Path) -> None:
    """Sources that changed and programs that did not, as after an upgrade: one start lowers, and the next one does not."""
    kept = tmp_path / "kept"
    with _persistent_cache(tmp_path / "compiled"):
        assert _compile(kept, _program())[1].from_cache == 0
        assert _compile(kept, _program(), made_from="upgraded")[1].from_cache == 1, "by the persistent cache"
        compiled, report = _compile(kept, _program(_untraceable), made_from="upgraded")
    assert report.from_cache == 1
    pool = jax.device_put(np.ones((4, 8), np.float32), SPLIT)
    assert float(compiled["add", 4](pool, np.arange(8, dtype=np.float32))[1]) == 144.0


def test_another_program_of_the_same_text_is_another(tmp_path: Path) -> None:
    """Arguments that are not used are not in it, and how they are nested is not either."""
    row = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=WHOLE)
    first = Program(("add",), lambda row, unused: row + 1, (row, row), WHOLE)
    other = Program(("add",), lambda row, unused: row + 1, (row, (row, row)), WHOLE)
    _compile(tmp_path, first)
    compiled, _ = _compile(tmp_path, other)
    one = np.ones(8, np.float32)
    assert np.array_equal(compiled["add",](one, (one, one)), one + 1)


def test_two_that_start_at_once_leave_one_executable(tmp_path: Path) -> None:
    """Neither finds the program, and the second one's is answered by the persistent cache."""
    kept = [KeptPrograms(tmp_path, "toy", DEVICES, ()) for _ in range(2)]
    lowered = _program().lower()
    for one, here in zip(kept, (True, False), strict=True):
        one.keep(_program(), lowered, lowered.compile(), compiled_here=here)
    assert len({file.stat().st_ino for file in tmp_path.iterdir()}) == 1 and len(list(tmp_path.iterdir())) == 2
    assert kept[0].load(_program(_untraceable)) is not None


def test_a_copy_does_where_files_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    _compile(tmp_path, _program())
    assert _compile(tmp_path, _program(_untraceable))[1].from_cache == 1


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
        KeptPrograms(tmp_path, value, DEVICES, ())


def test_a_cache_that_is_no_folder_keeps_nothing() -> None:
    with _persistent_cache("gs://bucket/x"):
        assert kept_programs.kept_beside_the_cache("toy", DEVICES, ()) is None


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _persistent_cache(tmp_path):
        kept = kept_programs.kept_beside_the_cache("toy", DEVICES, ())
        assert kept is not None
        compile_programs([_program()], 2, lambda name, done, total: None, kept)
        folder = tmp_path / kept_programs.FOLDER
        assert folder.stat().st_mode & 0o077 == 0, "it is made for this user alone"
        assert kept_programs.kept_beside_the_cache("toy", DEVICES, ()) is not None
        folder.chmod(0o770)
        assert kept_programs.kept_beside_the_cache("toy", DEVICES, ()) is None
    assert "could run code here" in caplog.text


def test_a_folder_that_cannot_be_changed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compile(tmp_path, _program())

    def refused(*arguments: Any, **more: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    kept = KeptPrograms(tmp_path, "toy", DEVICES, ())
    assert kept.load(_program(_untraceable)) is not None
    for file in tmp_path.iterdir():
        file.write_bytes(b"nothing")
    assert kept.load(_program(_untraceable)) is None


def test_a_program_that_has_no_description_is_compiled_and_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange = _program(key=("add", object()))
    compiled, report = _compile(tmp_path, strange)
    assert strange.key in compiled and report.from_cache == 0
    assert "not kept" in caplog.text and not list(tmp_path.iterdir())


def test_an_engine_that_has_no_description_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert kept_programs.kept_beside_the_cache({"inside": object()}, DEVICES, ()) is None
    assert "programs are not kept" in caplog.text
    assert kept_programs.kept_beside_the_cache({"inside": np.float32(1)}, DEVICES, ()) is not None

"""An instance that is built a second time finds its programs, and one that is built otherwise does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from triptych.runtime.core.instance import Role
from triptych.runtime.engine.config import EngineConfig, engine_config
from triptych.runtime.engine.kept_programs import FOLDER, KeptPrograms
from triptych.runtime.worker.build import InstanceParts, build_instances, open_worker_model
from triptych.runtime.worker.config import InstancePlan, WorkerConfig, read_by_compilers
from triptych.runtime.worker.kept import kept_programs
from triptych.sharding.mesh import make_mesh

BOTH = frozenset({Role.PREFILL, Role.DECODE})
CONFIG = WorkerConfig(
    name="w", scheduler="one:1", instances=(InstancePlan("pd-0", BOTH),), model="dummy:toy", cache=Path("/nonexistent"), served_model_name="m",
    max_num_seqs=1, max_model_len=32, chunk_tokens=16, num_pages=9, environment=(),
)  # fmt: skip
LIMITS = engine_config(
    num_pages=9, max_num_seqs=1, max_model_len=32, chunk_tokens=16, page_size=16, kv_dtype="float32", roles=BOTH
)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty persistent cache: what it answers is not kept."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    for folder in (str(tmp_path), before):
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        if folder != before:
            yield tmp_path


def _build(config: WorkerConfig) -> InstanceParts:
    (parts,) = build_instances(config, open_worker_model(config), lambda text: None)
    return parts


@pytest.mark.limit(200)
def test_a_second_instance_lowers_nothing(cache: Path) -> None:
    first = _build(CONFIG).start
    kept = len(list((cache / FOLDER).iterdir()))
    assert first.programs > 5 and kept >= first.programs - first.from_cache > 0
    again = _build(
        dataclasses.replace(CONFIG, name="v", scheduler="two:2", port=1234, token="secret", max_waiting=9)
    ).start
    assert again.from_cache == again.programs == first.programs
    assert again.lowering < first.lowering / 20


def _kept(config: WorkerConfig, limits: EngineConfig = LIMITS) -> KeptPrograms:
    model = open_worker_model(config)
    (plan,) = config.instances
    kept = kept_programs(config, plan, model, limits, make_mesh(jax.devices()[: plan.tp], plan.tp))
    assert kept is not None
    return kept


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "dummy:toy-draft"},
        {"weights": "int8"},
        {"dtype": "bfloat16"},
        {"export_pages": 4},
        {"kv_layer_groups": 1},
        {"instances": (InstancePlan("pd-0", BOTH, tp=2),)},
        {"instances": (InstancePlan("d-0", frozenset({Role.DECODE})),)},
    ],
    ids=["model", "weights", "dtype", "pages an offer", "layers an offer", "devices", "roles"],
)
def test_what_programs_depend_on_counts(changes: dict[str, Any]) -> None:
    assert _kept(CONFIG).made_from != _kept(dataclasses.replace(CONFIG, **changes)).made_from


def test_limits_count_and_threads_do_not() -> None:
    assert _kept(CONFIG).made_from != _kept(CONFIG, dataclasses.replace(LIMITS, num_pages=10)).made_from
    assert _kept(CONFIG).made_from == _kept(CONFIG, dataclasses.replace(LIMITS, compile_threads=7)).made_from


def test_what_compilers_read_counts_and_without_it_nothing_is_kept() -> None:
    read = read_by_compilers(
        {"XLA_FLAGS": "--a", "JAX_COMPILATION_CACHE_DIR": "/b", "HOME": "/c", "JAX_ENABLE_X64": "1"}
    )
    assert read == (("JAX_ENABLE_X64", "1"), ("XLA_FLAGS", "--a"))
    assert _kept(CONFIG).made_from != _kept(dataclasses.replace(CONFIG, environment=read)).made_from
    (plan,) = CONFIG.instances
    unknown = dataclasses.replace(CONFIG, environment=None)
    mesh = make_mesh(jax.devices()[:1], 1)
    assert kept_programs(unknown, plan, open_worker_model(unknown), LIMITS, mesh) is None

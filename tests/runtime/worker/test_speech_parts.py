"""Which window pool and encoder an instance of a speech model gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triptych.models.hub.resolve import resolve_model
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.worker import media_parts
from triptych.runtime.worker.build import compatibility, open_worker_model
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.media_parts import WorkerModel

E, P, D = Role.ENCODE, Role.PREFILL, Role.DECODE
WINDOW = 4  # pages of 16 entries for 50


def plan(*roles: Role) -> InstancePlan:
    return InstancePlan("i", frozenset(roles))


def config(**changes: Any) -> WorkerConfig:
    return WorkerConfig("w", "s:1", (plan(P),), "dummy:toy-whisper", Path("unused"), "toy", **changes)


@pytest.fixture(scope="module")
def model() -> WorkerModel:
    return open_worker_model(config())


def test_every_instance_has_a_pool_of_whole_windows(model: WorkerModel) -> None:
    for instance in (plan(E), plan(P), plan(D), plan(E, P, D)):
        assert media_parts.media_pages(config(max_num_seqs=3), instance, model, 64) == 5 * WINDOW + 1
        assert media_parts.media_pages(config(media_pages=WINDOW + 1), instance, model, 64) == WINDOW + 1
        with pytest.raises(ConfigError, match="cannot hold one window"):
            media_parts.media_pages(config(media_pages=WINDOW), instance, model, 64)


def test_encode_programs_hold_whole_windows(model: WorkerModel) -> None:
    assert media_parts.encode_patches(config(), plan(E, P), model) == 100
    assert media_parts.encode_patches(config(encode_patches=170), plan(E), model) == 170
    assert media_parts.encode_patches(config(), plan(P, D), model) == 0
    with pytest.raises(ConfigError, match="a window of dummy:toy-whisper takes 50"):
        media_parts.encode_patches(config(encode_patches=49), plan(E), model)


def test_all_instances_declare_what_moves_between_their_pools(model: WorkerModel) -> None:
    header = media_parts.media_header(config(kv_dtype="bfloat16"), model)
    assert header is not None
    (group,) = header.groups
    assert (group.name, group.kind, group.heads, group.head_dim, group.layers) == ("cross", "cross", 4, 8, (0, 1))
    assert header.dtype == "bfloat16" and header.layer_groups == ((0, 2),)
    layout = compatibility(config(), model).media_layout
    assert layout and layout != compatibility(config(kv_dtype="bfloat16"), model).media_layout


def test_random_weights_are_named_as_such() -> None:
    dummy = open_worker_model(config(load_dummy=True))
    assert dummy.bundle.revision.startswith("dummy-")
    assert dummy.bundle.revision != resolve_model("dummy:toy-whisper", Path("unused")).revision
    assert dummy.eos_ids == (256,)

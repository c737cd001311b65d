"""An engine whose decoder attends with the TPU kernel, interpreted, draws the reference's tokens from combined pages."""

from __future__ import annotations

import pytest

from tests.models.kernels.interpreted import interpret_tpu_kernels
from tests.runtime.engine.driver import PAGE, SLOTS, Driver, compiled, sequence, toy_config
from tests.runtime.engine.oracle import greedy, toy
from triptych.models.kv import kv_groups
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.memory import page_bytes
from triptych.runtime.engine.pools import pool_structs

PROMPTS = ([11, 200, 3, 77, 5], [9, 8, 7, 6, 5, 4, 3, 2, 1, 250, 251, 4, 99])


@pytest.mark.slow
@pytest.mark.limit(600)
@pytest.mark.parametrize("last_only", [False, True], ids=["whole last layer", "last tokens"])
def test_tokens_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch, last_only: bool) -> None:
    interpret_tpu_kernels(monkeypatch)
    shapes = (ExtendShape(2, 0, 6), ExtendShape(2, 16, 6, last_only=last_only))
    engine = compiled(
        2, attention="tpu", max_num_seqs=2, max_model_len=6 * PAGE, buckets=Buckets(shapes, draws=(2,)), prompt_logprobs=False
    )  # fmt: skip
    driver, expected = Driver(engine), [greedy(prompt, 6) for prompt in PROMPTS]
    assert driver.generate([sequence(number, list(prompt)) for number, prompt in enumerate(PROMPTS)], 6) == expected
    assert all(len(arrays) == 1 for arrays in engine.pools)


def test_the_pool_is_as_large_as_its_pages_are_said_to_be() -> None:
    structure = toy(2).structure
    (group,) = kv_groups(structure.config, "float32")
    for attention, arrays, bytes_a_page in (
        # 2 layers, keys and values, 4 tokens, 2 heads a device, of 16 numbers or of the 128 of a tile.
        ("reference", 2, 2 * 2 * PAGE * 2 * 16 * 4),
        ("tpu", 1, 2 * 2 * PAGE * 2 * 128 * 4),
    ):
        layers = pool_structs(structure, group, toy_config(attention=attention))
        assert [len(layer) for layer in layers] == [arrays, arrays]
        held = sum(struct.size * struct.dtype.itemsize for layer in layers for struct in layer)
        assert page_bytes(structure, PAGE, "float32", attention) == bytes_a_page == held // 2 // layers[0][0].shape[0]


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention 'abacus' is unknown; known: reference, .*tpu"):
        toy_config(attention="abacus", max_num_seqs=SLOTS)

"""Every decoder family against logits of the reference library, in every way that a step can be made of tokens.

The goldens come from tools/make_goldens.py. Two sequences share each step: one is prefilled whole, the other in chunks,
and then both decode side by side. All logits of both must be the reference's.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models.paged_model import NOBODY, Bucket, PagedModel
from triptych.models.weights.hf import open_hf_folder, read_hf_config
from triptych.models.weights.load import load_decoder
from triptych.sharding.mesh import make_mesh

GOLDENS = Path(__file__).parent / "goldens"
FAMILIES = ("llama2", "llama3", "smollm2", "mistral", "qwen2", "qwen3", "bias")
ROPES = ("rope_linear", "rope_dynamic", "rope_yarn")

# One of each way to lay heads out stays in the quick run: padded, replicated, plain and padded again with windows.
QUICK = {("smollm2", 2), ("llama3", 4), ("qwen2", 2), ("mistral", 4)}
CASES = [
    pytest.param(family, tp, marks=() if tp == 1 or (family, tp) in QUICK else pytest.mark.slow)
    for family, tp in [(family, tp) for family in FAMILIES for tp in (1, 2, 4)] + [(family, 1) for family in ROPES]
]

MIXED = Bucket(tokens=36, rows=4, decode_rows=1, max_q_len=24)
DECODE = Bucket(tokens=3, rows=3, decode_rows=3, max_q_len=1)


def assert_close(logits: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "tp"), CASES)
def test_prefill_chunks_mixed_steps_and_decode_give_the_reference_logits(family: str, tp: int) -> None:
    folder = GOLDENS / family
    golden = np.load(folder / "golden.npz")
    prompt, expected = golden["prompt"], golden["prompt_logits"]
    mesh = make_mesh(jax.devices()[:tp], tp)
    loaded = load_decoder(read_hf_config(folder), open_hf_folder(folder), mesh, "float32")
    model = PagedModel(loaded, np.random.default_rng(tp))
    whole, chunked = model.new_sequence(), model.new_sequence()

    _, logits, first = model.step(MIXED, [NOBODY, (whole, prompt), (chunked, prompt[:7])])
    assert_close(logits, expected)
    assert_close(first, expected[:7])
    _, second = model.step(MIXED, [NOBODY, (chunked, prompt[7:15])])
    assert_close(second, expected[7:15])
    # The whole sequence decodes its first token while the other one's prefill goes on.
    decoded, third = model.step(MIXED, [(whole, golden["decoded"][:1]), (chunked, prompt[15:])])
    assert_close(third, expected[15:])
    assert_close(decoded, golden["decode_logits"][:1])
    assert int(logits[-1].argmax()) == golden["decoded"][0]

    model.step(DECODE, [(chunked, golden["decoded"][:1])])
    for at in range(1, len(golden["decoded"])):
        token = golden["decoded"][at : at + 1]
        for row in model.step(DECODE, [(whole, token), (chunked, token)]):
            assert_close(row, golden["decode_logits"][at : at + 1])

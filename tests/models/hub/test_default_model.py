"""The default model, fetched for real: tokenizer, template, weights and decoder together give the known numbers."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from triptych.models.decoder import extend
from triptych.models.hub.bundle import ModelBundle, open_model
from triptych.models.hub.resolve import resolve_model
from triptych.models.kv import kv_groups
from triptych.models.ragged import Ragged
from triptych.models.text.detokenizer import Detokenizer
from triptych.models.weights.load import load_decoder
from triptych.sharding.mesh import make_mesh

pytestmark = pytest.mark.real_model

QUESTION = "What is the capital of France? Answer in one sentence."
# Token and logit of the five best first tokens, from a numpy forward pass over the dequantised weights in float32.
GOLDEN = {504: 29.780, 38634: 28.298, 7026: 27.065, 57: 26.962, 60: 26.954}
PAGES, PAGE_SIZE = 8, 16


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    cache = Path(os.environ.get("TRIPTYCH_CACHE", "~/.cache/triptych")).expanduser()
    return open_model(resolve_model("smollm2", cache))


@pytest.fixture(scope="module")
def prompt(bundle: ModelBundle) -> list[int]:
    assert bundle.tokenizer is not None and bundle.chat_template is not None
    text = bundle.chat_template.render([{"role": "user", "content": QUESTION}])
    return bundle.tokenizer.encode(text, add_special_tokens=False)


def step_of(tokens: list[int], start: int) -> Ragged:
    """One row on pages 1, 2, ...: position p lies at slot p of those pages."""
    count = len(tokens)
    positions = np.arange(start, start + count, dtype=np.int32)
    return Ragged(
        tokens=jnp.array(tokens, jnp.int32),
        positions=jnp.array(positions),
        write_index=jnp.array(PAGE_SIZE + positions),
        kv_lens=jnp.array([start + count], jnp.int32),
        page_indices=jnp.arange(1, PAGES, dtype=jnp.int32)[None],
        cu_q_lens=jnp.array([0, count], jnp.int32),
        decode_rows=1 if count == 1 else 0,
        max_q_len=count,
    )


@pytest.mark.limit(600)  # compiles thirty layers twice
def test_the_known_answer_with_the_known_logits(bundle: ModelBundle, prompt: list[int]):
    assert len(prompt) == 42 and bundle.tokenizer is not None
    model = load_decoder(bundle.config, bundle.tensor_source, make_mesh(jax.devices()[:1], 1), "float32")
    pools = model.structure.allocate_pools(kv_groups(bundle.config, "float32")[0], PAGES, PAGE_SIZE)

    @jax.jit
    def step(params, pools, batch: Ragged):
        decoder = model.merge(params)
        hidden, pools = extend(decoder, pools, batch)
        return decoder.head(hidden[-1:])[0], pools

    logits, pools = step(model.params, pools, step_of(prompt, 0))
    best = np.argsort(-np.asarray(logits))[:5]
    assert best.tolist() == list(GOLDEN)
    np.testing.assert_allclose(np.asarray(logits)[best], list(GOLDEN.values()), atol=5e-3)

    detokenizer, text, length = Detokenizer(bundle.tokenizer), "", len(prompt)
    token = int(best[0])
    while token not in bundle.config.eos_token_ids and length < 70:
        text += detokenizer.push(token)
        logits, pools = step(model.params, pools, step_of([token], length))
        token, length = int(np.asarray(logits).argmax()), length + 1
    assert text + detokenizer.flush() == "The capital of France is Paris."


def test_text_survives_the_real_vocabulary(bundle: ModelBundle):
    tokenizer = bundle.tokenizer
    assert tokenizer is not None and tokenizer.vocab_size == bundle.config.vocab_size == 49152
    text = "Hello world 12345, it's a naïve café — 日本語 🙂\n\tdef f(x): return x**2"
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer)
    assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == tokenizer.decode(ids) == text

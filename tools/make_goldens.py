"""Make the golden checkpoints of tests/models/goldens: tiny random models of every family, with reference logits.

The reference is the transformers library in float32 with eager attention; tests then need neither it nor torch. Each
folder gets config.json, generation_config.json, model.safetensors (or a sharded index) and golden.npz: the prompt, its
logits at every position, and the tokens and logits of greedy decoding after it, each step recomputed from the whole
sequence so that no cache is trusted.

    pip install torch transformers   # made with 2.13 and 5.23; nothing else here needs them
    python -m triptych.tools.make_goldens tests/models/goldens [family ...]
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PROMPT_TOKENS = 24
DECODE_STEPS = 8

# Small enough to commit, and awkward on purpose: widths and vocabularies that tp sizes do not divide, head_dim apart
# from hidden / heads, windows shorter than the prompt.
_BASE = {
    "vocab_size": 256,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}
_LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "num_hidden_layers": 1}


def _llama(**changes: Any) -> tuple[str, dict[str, Any]]:
    return "Llama", _BASE | changes


def _rope(kind: str, **params: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0} | params


FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama2": _llama(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False, vocab_size=254),
    "llama3": _llama(
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        intermediate_size=72,
        rope_parameters=_rope(
            "llama3",
            rope_theta=500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "smollm2": _llama(
        num_attention_heads=9,
        num_key_value_heads=3,
        hidden_size=72,
        tie_word_embeddings=True,
        rope_parameters=_rope("default", rope_theta=100000.0),
    ),
    "mistral": (
        "Mistral",
        _BASE
        | {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "intermediate_size": 90,
        },
    ),
    "qwen2": (
        "Qwen2",
        _BASE
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 10,
            "max_window_layers": 1,
        },
    ),
    "qwen3": (
        "Qwen3",
        _BASE | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    ),
    "bias": _llama(**_LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "rope_linear": _llama(**_LLAMA, rope_parameters=_rope("linear", factor=4.0)),
    "rope_dynamic": _llama(**_LLAMA, rope_parameters=_rope("dynamic", factor=4.0)),
    "rope_yarn": _llama(**_LLAMA, rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=32)),
}

# One family in several files, one in bfloat16: the other ways a checkpoint is stored.
SHARDED = "llama3"
BFLOAT16 = "mistral"


def make_golden(name: str, folder: Path) -> None:
    """Write one family's checkpoint and reference logits."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    kind, sizes = FAMILIES[name]
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**sizes, **tokens, attn_implementation="eager")
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                value = 0.1 * noise if path.endswith("bias") else 1.0 + 0.2 * noise
            else:
                # Wider than usual, so that logits differ by more than rounding and attention is far from uniform.
                value = noise * 1.5 * parameter.shape[1] ** -0.5
            parameter.copy_(value.to(torch.bfloat16) if name == BFLOAT16 else value)
    model.generation_config.eos_token_id = [2, 3]
    prompt = torch.randint(4, sizes["vocab_size"], (PROMPT_TOKENS,), generator=generator)
    sequence, decoded, decode_logits = prompt, [], []
    with torch.no_grad():
        prompt_logits = model(prompt[None], use_cache=False).logits[0]
        logits = prompt_logits[-1]
        for _ in range(DECODE_STEPS):
            token = logits.argmax()
            decoded.append(int(token))
            sequence = torch.cat((sequence, token[None]))
            logits = model(sequence[None], use_cache=False).logits[0, -1]
            decode_logits.append(logits)
    folder.mkdir(parents=True, exist_ok=True)
    stored = model.to(torch.bfloat16) if name == BFLOAT16 else model
    stored.save_pretrained(folder, max_shard_size="100KB" if name == SHARDED else "1GB")
    np.savez(
        folder / "golden.npz",
        prompt=prompt.numpy().astype(np.int32),
        prompt_logits=prompt_logits.numpy(),
        decoded=np.asarray(decoded, np.int32),
        decode_logits=torch.stack(decode_logits).numpy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make golden checkpoints with the transformers library.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="*", help=f"any of {', '.join(FAMILIES)}; all by default")
    arguments = parser.parse_args()
    for name in arguments.families or FAMILIES:
        make_golden(name, arguments.folder / name)
        print(name)


if __name__ == "__main__":
    main()

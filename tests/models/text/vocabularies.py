"""Tiny vocabularies as GGUF metadata."""

from __future__ import annotations

from typing import Any

from triptych.models.text.tokenizer import CHARACTER_OF_BYTE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_level_metadata(pre: str = "smollm") -> dict[str, Any]:
    """256 bytes, three merged pieces, two control tokens and one run of spaces as a user-defined token."""
    pieces = [CHARACTER_OF_BYTE[byte] for byte in range(256)] + ["he", "ll", "hell", "12"]
    types = [NORMAL] * len(pieces) + [CONTROL, CONTROL, USER_DEFINED]
    pieces += ["<|im_start|>", "<|im_end|>", "    "]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "1 2"],
        "tokenizer.ggml.bos_token_id": 260,
        "tokenizer.ggml.eos_token_id": 261,
        "tokenizer.ggml.add_bos_token": False,
    }


def sentencepiece_metadata() -> dict[str, Any]:
    """Three special tokens, 256 byte tokens, and pieces whose scores say which pair is merged first."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    scores = [0.0] * len(pieces)
    normal = [("ab", -1.0), ("bc", -0.5), ("▁a", -2.0), ("▁", -10.0), ("a", -11.0), ("b", -12.0), ("c", -13.0)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces + [piece for piece, _ in normal],
        "tokenizer.ggml.token_type": types + [NORMAL] * len(normal),
        "tokenizer.ggml.scores": scores + [score for _, score in normal],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }

"""A byte-level tokenizer of 260 tokens, built in code: token i < 256 is the byte i, then the special tokens.

The preset "toy" and tests use it: any text round-trips, no file is needed, and an id says by itself what it is.
"""

from __future__ import annotations

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from triptych.models.text.tokenizer import CHARACTER_OF_BYTE, Tokenizer

__all__ = ["TOY_CHAT_TEMPLATE", "TOY_SPECIAL_TOKENS", "toy_tokenizer"]

TOY_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""Ids 256, 257, ... in this order; `<|im_end|>` and `<|endoftext|>` end a generation, `<|im_start|>` is the BOS."""

TOY_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, the format of SmolLM and Qwen."""


def toy_tokenizer() -> Tokenizer:
    """A new toy tokenizer; `eos_ids` is (258, 256)."""
    vocabulary = {CHARACTER_OF_BYTE[byte]: byte for byte in range(256)}
    backend = RustTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in TOY_SPECIAL_TOKENS])
    return Tokenizer(backend, eos_ids=(258, 256), bos_token="<|im_start|>", eos_token="<|im_end|>")

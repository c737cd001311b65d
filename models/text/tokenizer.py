"""One tokenizer type for every source of a vocabulary.

The Rust `tokenizers` library encodes and decodes. What this module adds is the *piece codec*: the exact bytes that one
token stands for. With it, decoding is concatenation, so a detokeniser can work token by token in constant time, and a
grammar can reason about bytes. Two codecs cover every decoder model served here:

- byte-level (GPT-2, Llama 3, Qwen, SmolLM): each character of a piece names one byte;
- byte-fallback (SentencePiece models, e.g. Llama 2 and Mistral): `▁` is a space, `<0xNN>` is one byte, and the first
  space of a text is dropped.

A vocabulary of any other kind is refused with `UnsupportedTokenizerError` when it is opened, not when a request meets
it.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import tokenizers

__all__ = ["InvalidTextError", "PieceCodec", "Tokenizer", "UnsupportedTokenizerError"]


class UnsupportedTokenizerError(ValueError):
    """The vocabulary is of a kind that cannot be served; the message says which kinds can."""


class InvalidTextError(ValueError):
    """The text is no Unicode text: it has a lone surrogate, which JSON can carry (`"\\ud800"`) and UTF-8 cannot."""


class PieceCodec(enum.Enum):
    """How a vocabulary piece spells bytes."""

    BYTE_LEVEL = "byte_level"
    BYTE_FALLBACK = "byte_fallback"


def _byte_level_alphabet() -> dict[str, int]:
    """The GPT-2 alphabet: printable Latin-1 characters stand for their own byte, U+0100 onwards for the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_level_alphabet()
CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}


class Tokenizer:
    """A vocabulary with its special tokens. Immutable after construction; safe to share between threads.

    Args:
        backend: the Rust tokenizer. Its truncation and padding are switched off: a tokenizer.json saved during training
            may carry both, and would cut or pad prompts silently.
        eos_ids: tokens that end a generation, the main one first.
        bos_token, eos_token: their text, as chat templates want it.

    Raises UnsupportedTokenizerError if the decoder is neither byte-level nor byte-fallback.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int],
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._codec, self._strips_first_space = _codec_of(backend)
        self._bytes: dict[int, bytes] = {}
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(eos_ids))
        self.bos_token = bos_token
        self.eos_token = eos_token

    @property
    def codec(self) -> PieceCodec:
        return self._codec

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding drops one space at the start of a text."""
        return self._strips_first_space

    @cached_property
    def vocab_size(self) -> int:
        """Ids that have a piece, added tokens included. A model's logits may be wider (padding rows)."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out of decoded text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens spelt out in the text are recognised.

        `add_special_tokens` adds what the vocabulary adds around a plain text (for most models a BOS): pass False for a
        rendered chat template, which already has them. Raises InvalidTextError.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:  # what the Rust binding makes of a str without a UTF-8 form
            surrogate = next((at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
            if surrogate is None:
                raise
            raise InvalidTextError(
                f"the text has a lone surrogate at character {surrogate}; send valid Unicode"
            ) from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Ids without a piece are dropped, bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def piece(self, token: int) -> str | None:
        """The vocabulary's spelling of an id, or None if it has none."""
        return self._backend.id_to_token(token)

    def id_of(self, piece: str) -> int | None:
        return self._backend.token_to_id(piece)

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token adds to a decoded text; empty for an id without a piece (logits are often padded)."""
        known = self._bytes.get(token)
        if known is None:
            piece = self._backend.id_to_token(token)
            known = b"" if piece is None else _bytes_of_piece(piece, self._codec)
            self._bytes[token] = known
        return known

    def to_json(self) -> str:
        """The content of a tokenizer.json that reopens as this vocabulary."""
        return self._backend.to_str()


def _bytes_of_piece(piece: str, codec: PieceCodec) -> bytes:
    if codec is PieceCodec.BYTE_LEVEL:
        try:
            return bytes([BYTE_OF_CHARACTER[character] for character in piece])
        except KeyError:  # an added token spelt in plain text, e.g. a run of spaces
            return piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            return piece.encode()
    return piece.replace("▁", " ").encode()


def _codec_of(backend: tokenizers.Tokenizer) -> tuple[PieceCodec, bool]:
    """The codec and whether the first space is stripped, read off the decoder's own description."""
    steps: list[dict[str, Any]] = []
    if backend.decoder is not None:
        described = json.loads(backend.decoder.__getstate__())
        steps = described["decoders"] if described["type"] == "Sequence" else [described]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceCodec.BYTE_LEVEL, False
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"]:
        replace, strip = steps[0], steps[3:]
        spaces = replace["pattern"] == {"String": "▁"} and replace["content"] == " "
        strips_one = [{key: step.get(key) for key in ("type", "content", "start", "stop")} for step in strip]
        one_space = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        if spaces and strips_one in ([], [one_space]):
            return PieceCodec.BYTE_FALLBACK, bool(strip)
    raise UnsupportedTokenizerError(
        f"the tokenizer's decoder is {kinds or 'missing'}; supported: byte-level ([ByteLevel]: GPT-2, Llama 3, Qwen, "
        "SmolLM) and SentencePiece with byte fallback ([Replace, ByteFallback, Fuse], then Strip of one leading space)"
    )

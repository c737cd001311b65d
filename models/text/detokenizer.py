"""Tokens to text while they arrive.

Each token adds known bytes (`Tokenizer.token_bytes`), and an incremental UTF-8 decoder holds back an incomplete
character. So a push costs time proportional to the token's own bytes, however long the text is, and the deltas joined
are the text of the whole sequence. Bytes that can no longer become a character turn into U+FFFD exactly where
whole-text decoding puts it; bytes that merely lack their rest are held until they are complete or the text ends.

A byte-fallback vocabulary differs in one corner: whole-text decoding replaces *every* byte of a run of byte tokens when
the run is not valid UTF-8. A stream has already emitted the valid characters of that run, so here only the invalid
bytes are replaced.
"""

from __future__ import annotations

import codecs

from triptych.models.text.tokenizer import Tokenizer

__all__ = ["Detokenizer"]


class Detokenizer:
    """Text deltas of one sequence of generated tokens.

    Args:
        tokenizer: the vocabulary.
        skip_special_tokens: leave special tokens out of the text, as `Tokenizer.decode` does.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_next_space = tokenizer.strips_first_space

    def push(self, token: int) -> str:
        """The text that this token completes, possibly empty."""
        if token in self._skipped:
            return ""
        return self._stripped(self._utf8.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """The text still held at the end of the sequence: U+FFFD for a character that was never completed, else empty.

        The detokeniser then starts anew.
        """
        rest = self._stripped(self._utf8.decode(b"", final=True))
        self._utf8.reset()
        self._strip_next_space = self._tokenizer.strips_first_space
        return rest

    def _stripped(self, text: str) -> str:
        if not text or not self._strip_next_space:
            return text
        self._strip_next_space = False
        return text.removeprefix(" ")

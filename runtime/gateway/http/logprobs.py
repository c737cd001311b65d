"""Log-probabilities in the three shapes that clients know: chats', completions', and vLLM's of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triptych.runtime.client import Token

FLOOR = -9999.0  # JSON has no infinity; the same number as vLLM's for a token that cannot be drawn
REPLACEMENT = "\ufffd"


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat."""
    content = [
        _chat_token(token.text, token.logprob) | {"top_logprobs": [_chat_token(text, lp) for _, lp, text in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; `offset`: characters before the first token. A prompt's first token has none: null."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in tokens],
        "top_logprobs": [_alternatives(token) for token in tokens],
        "text_offset": offsets,
    }


def prompt_logprobs(tokens: Sequence[Token]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: by token id; `rank` only of the most likely ones, because that of others is not known."""
    out: list[dict[str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            out.append(None)
            continue
        entries = {
            str(id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": text}
            for rank, (id, logprob, text) in enumerate(token.top, start=1)
        }
        entries.setdefault(
            str(token.id), {"logprob": _finite(token.logprob), "rank": None, "decoded_token": token.text}
        )
        out.append(entries)
    return out


def _chat_token(text: str, logprob: float | None) -> dict[str, Any]:
    # A token that is only part of a character is spelled with U+FFFD; what its bytes are is not known here.
    spelled = None if REPLACEMENT in text else list(text.encode("utf-8"))
    return {"token": text, "logprob": FLOOR if logprob is None else _finite(logprob), "bytes": spelled}


def _alternatives(token: Token) -> dict[str, float] | None:
    """The likeliest first, and the token itself, as OpenAI does. Of several with the same text the likeliest stays."""
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for _, logprob, text in token.top:
        found.setdefault(text, _finite(logprob))
    found.setdefault(token.text, _finite(token.logprob))
    return found


def _finite(logprob: float) -> float:
    return max(logprob, FLOOR)

"""Tokens of one sample to what the client sees: text deltas, token details, the completion.

Tokens are carried exactly, as they come; text lags behind them, because a character may span tokens and a stop string may be under way. The
decode instance decides when a sample ends; the same detokeniser and the same stop matcher run here to cut the text. Where the
two differ (the visible text of this request includes special tokens, say), a match here ends the sample here.

The text of an EOS token, and of a stop token unless `include_stop`, is hidden. A stop string that is complete within the first `min_tokens` tokens
is ordinary text, and the search begins afresh behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.models.text.detokenizer import Detokenizer
from triptych.models.text.stop import StopMatcher
from triptych.models.text.tokenizer import Tokenizer
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.request import Finish, FinishReason, Logprobs, TokenOut


@dataclass(frozen=True)
class TextOptions:
    """What decides the text of a request's samples. `first_position` is the prompt's length."""

    first_position: int
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    include_stop: bool = False
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class Piece:
    """What one token adds: text that can be sent now, and the sample's end if this token is its last."""

    text: str
    finish: Finish | None


class SampleText:
    """The text side of one sample; `push` takes its tokens in order of position."""

    def __init__(self, tokenizer: Tokenizer | None, options: TextOptions):
        self._options = options
        self._detokenizer = (
            None if tokenizer is None else Detokenizer(tokenizer, skip_special_tokens=options.skip_special_tokens)
        )
        self._match_from = options.first_position + options.min_tokens
        self._matcher = self._new_matcher()
        self._held = ""  # what the matcher holds back

    def push(self, token: TokenOut) -> Piece:
        text = "" if self._hidden(token) or self._detokenizer is None else self._detokenizer.push(token.token)
        if token.finish is not None and self._detokenizer is not None:
            text += self._detokenizer.flush()
        outcome = self._matcher.push(text)
        if outcome.matched is not None and token.position < self._match_from:
            shown, self._held = self._held + text, ""
            self._matcher = self._new_matcher()
            return Piece(shown, token.finish)
        shown, matched = outcome.text, outcome.matched
        if matched is None and token.finish is not None:
            rest = self._matcher.flush()
            shown, matched = shown + rest.text, rest.matched
        if matched is not None:
            return Piece(shown, Finish(FinishReason.STOP, matched))
        self._held = (self._held + text)[len(shown) :]
        return Piece(shown, token.finish)

    def _new_matcher(self) -> StopMatcher:
        return StopMatcher(self._options.stop, on_match="keep" if self._options.include_stop else "drop")

    def _hidden(self, token: TokenOut) -> bool:
        """Whether the token ended the sample by being itself (EOS, stop token) and its text is not wanted."""
        if (
            token.finish is None
            or token.finish.reason is not FinishReason.STOP
            or isinstance(token.finish.matched, str)
        ):
            return False
        return token.finish.matched is None or not self._options.include_stop


def token_detail(token: TokenOut, tokenizer: Tokenizer | None) -> pb.TokenDetail:
    """The exact token, with its logprobs and the spelling of every candidate when they were asked for."""
    detail = pb.TokenDetail(token=token.token, position=token.position)
    fill_logprobs(detail, token.logprobs, tokenizer)
    return detail


def fill_logprobs(detail: pb.TokenDetail, logprobs: Logprobs | None, tokenizer: Tokenizer | None) -> None:
    if logprobs is None:
        return
    detail.logprob = logprobs.sampled
    detail.text = spelling(detail.token, tokenizer)
    for candidate, logprob in logprobs.top:
        detail.top.add(token=candidate, logprob=logprob, text=spelling(candidate, tokenizer))


def spelling(token: int, tokenizer: Tokenizer | None) -> str:
    """One token's own text; U+FFFD where it holds only part of a character."""
    return "" if tokenizer is None else tokenizer.token_bytes(token).decode("utf-8", errors="replace")


def completion(sample: int, finish: Finish) -> pb.Completion:
    """The wire form of a sample's end."""
    message = pb.Completion(sample=sample, finish_reason=finish.reason.value)
    if isinstance(finish.matched, str):
        message.matched_stop = finish.matched
    elif finish.matched is not None:
        message.matched_token = finish.matched
    return message

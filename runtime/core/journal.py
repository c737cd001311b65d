"""The journal of one request: which tokens exist, each position once and in order.

Tokens come from two instances over two streams (prefill's first token, decode's later ones), possibly twice after a reconnect, possibly from an
attempt that was given up. The journal releases each (sample, position) exactly once, in order of position, and knows when every sample is
finished. A later attempt resumes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from triptych.runtime.core.request import Finish, SampleState, TokenOut


@dataclass
class _Line:
    """One sample: tokens released so far, and later ones that wait for a missing position."""

    next_position: int
    outputs: list[int] = field(default_factory=list)
    waiting: dict[int, TokenOut] = field(default_factory=dict)
    finish: Finish | None = None  # set once the last token has been released


@dataclass
class JournalCounts:
    """Tokens that were dropped, by reason."""

    duplicates: int = 0
    stale: int = 0
    foreign: int = 0


class Journal:
    """Orders the tokens of one request.

    Args:
        prompt_tokens: the first generated token has this position.
        samples: n of the request.
        max_position: no token may lie at or beyond it (bounds what can wait).
    """

    def __init__(self, prompt_tokens: int, samples: int, max_position: int, attempt: int = 1):
        self._lines = [_Line(prompt_tokens) for _ in range(samples)]
        self._prompt_tokens = prompt_tokens
        self._max_position = max_position
        self._attempt = attempt
        self._unfinished = samples
        self.counts = JournalCounts()

    @property
    def attempt(self) -> int:
        return self._attempt

    @property
    def finished(self) -> bool:
        """Whether the finishing token of every sample has been released."""
        return self._unfinished == 0

    @property
    def gapped(self) -> bool:
        """Whether a token waits for an earlier position that has not come."""
        return any(line.waiting for line in self._lines)

    @property
    def emitted(self) -> int:
        """Tokens released, of all samples."""
        return sum(len(line.outputs) for line in self._lines)

    def push(self, token: TokenOut) -> Sequence[TokenOut]:
        """Take one token; returns those that can be released now, in order of position (usually just this one)."""
        if token.attempt != self._attempt:
            self.counts.stale += 1
            return ()
        if not (0 <= token.sample < len(self._lines) and self._prompt_tokens <= token.position < self._max_position):
            self.counts.foreign += 1
            return ()
        line = self._lines[token.sample]
        if token.position < line.next_position or token.position in line.waiting:
            self.counts.duplicates += 1
            return ()
        if line.finish is not None:
            self.counts.foreign += 1
            return ()
        line.waiting[token.position] = token
        return self._release(line)

    def close_sample(self, sample: int, position: int, finish: Finish) -> None:
        """The gateway itself found the sample's end (a stop string): the token at `position` is its last one."""
        line = self._lines[sample]
        if line.finish is None:
            self._unfinished -= 1
        line.finish = finish
        line.next_position = position + 1
        del line.outputs[line.next_position - self._prompt_tokens :]
        line.waiting.clear()

    def resume(self, attempt: int) -> tuple[SampleState, ...]:
        """Start a later attempt: from now on only its tokens count. Returns the samples as they stand, for the continuation."""
        if attempt <= self._attempt:
            raise ValueError(f"attempt {attempt} does not follow attempt {self._attempt}")
        self._attempt = attempt
        for line in self._lines:
            line.waiting.clear()
        return tuple(SampleState(index, tuple(line.outputs), line.finish) for index, line in enumerate(self._lines))

    def _release(self, line: _Line) -> list[TokenOut]:
        released: list[TokenOut] = []
        while line.finish is None and (token := line.waiting.pop(line.next_position, None)) is not None:
            line.next_position += 1
            line.outputs.append(token.token)
            released.append(token)
            if token.finish is not None:
                line.finish = token.finish
                self._unfinished -= 1
                self.counts.foreign += len(line.waiting)
                line.waiting.clear()
        return released

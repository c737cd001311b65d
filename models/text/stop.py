"""Stop strings over a stream of text deltas.

Rule: the match that *starts* earliest wins; among matches at the same start, the longest. The text before it is the
answer. The rule speaks about the whole text only, so the outcome does not depend on how the text was cut into deltas or
tokens.

Text is held back while it could still begin a stop string, and a complete match is held back while a longer or earlier
one is still possible. One Knuth-Morris-Pratt automaton per stop string knows, in constant amortised time per character,
the longest suffix that begins it (Knuth, Morris, Pratt: Fast Pattern Matching in Strings, SIAM J. Comput. 6(2), 1977).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["InvalidStopStringError", "StopMatcher", "StopOutcome"]


class InvalidStopStringError(ValueError):
    """A stop string is empty: it would match before the first token."""


@dataclass(frozen=True)
class StopOutcome:
    """`text` may be sent now; `matched` is the stop string that ended the text, or None while it goes on."""

    text: str
    matched: str | None


class StopMatcher:
    """Finds the first stop string in one text that arrives in pieces.

    Args:
        stops: the stop strings, none of them empty; may be no strings at all (then every delta passes through).
        on_match: "drop" ends the text before the stop string, "keep" after it.
    """

    def __init__(self, stops: Sequence[str], *, on_match: Literal["drop", "keep"] = "drop") -> None:
        if any(not stop for stop in stops):
            raise InvalidStopStringError("a stop string is empty; leave it out or give at least one character")
        self._automata = [_Automaton(stop) for stop in dict.fromkeys(stops)]
        self._on_match = on_match
        self._held = ""  # received, not yet sent
        self._held_from = 0  # position of _held[0] in the text
        self._matched: str | None = None

    def push(self, delta: str) -> StopOutcome:
        """Take the next piece of text. After a match nothing more is sent and the match is reported again."""
        if self._matched is not None:
            return StopOutcome("", self._matched)
        if not self._automata:
            return StopOutcome(delta, None)
        self._held += delta
        for automaton in self._automata:
            automaton.feed(delta)
        possible_from = min(automaton.possible_start for automaton in self._automata)
        best = self._best()
        if best is not None and best[0] < possible_from:
            return self._finish(best)
        return StopOutcome(self._release(possible_from), None)

    def flush(self) -> StopOutcome:
        """The text has ended: what was held back, cut at the match if there is one."""
        if self._matched is not None:
            return StopOutcome("", self._matched)
        best = self._best()
        if best is not None:
            return self._finish(best)
        return StopOutcome(self._release(self._held_from + len(self._held)), None)

    def _best(self) -> tuple[int, str] | None:
        found = [(a.match_start, a.pattern) for a in self._automata if a.match_start is not None]
        return min(found, key=lambda match: (match[0], -len(match[1])), default=None)

    def _finish(self, best: tuple[int, str]) -> StopOutcome:
        start, self._matched = best
        text = self._release(start if self._on_match == "drop" else start + len(self._matched))
        self._held = ""
        return StopOutcome(text, self._matched)

    def _release(self, position: int) -> str:
        count = position - self._held_from
        text, self._held = self._held[:count], self._held[count:]
        self._held_from = position
        return text


class _Automaton:
    """The state of one stop string: its first match, or the longest suffix of the text that begins it."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.match_start: int | None = None
        self._position = 0
        self._state = 0
        self._fallback = _fallback_table(pattern)

    @property
    def possible_start(self) -> int:
        """Where a match that is not complete yet would start at the earliest (the end of the text if nothing has
        begun).

        Once the first match is known, no other one of this string matters.
        """
        return self._position - self._state

    def feed(self, delta: str) -> None:
        end = self._position + len(delta)
        if self.match_start is None:
            self._search(delta)
        if self.match_start is not None:
            self._state = 0
        self._position = end

    def _search(self, delta: str) -> None:
        pattern, fallback, state = self.pattern, self._fallback, self._state
        for offset, character in enumerate(delta):
            while state and pattern[state] != character:
                state = fallback[state - 1]
            if pattern[state] == character:
                state += 1
            if state == len(pattern):
                self.match_start = self._position + offset + 1 - state
                return
        self._state = state


def _fallback_table(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    table, state = [0], 0
    for character in pattern[1:]:
        while state and pattern[state] != character:
            state = table[state - 1]
        if pattern[state] == character:
            state += 1
        table.append(state)
    return table

"""Prompt look-up: a sequence is expected to go on as it did the last time that its latest tokens stood there (Saxena 2023, prompt look-up
decoding; the same idea as reference copying in LLMA, arXiv 2304.04487).

Every n-gram of the sequence, prompt and outputs alike, maps to where it was followed last. A token adds one entry a length, so the index grows in
constant time a token, and asking it is one look-up a length.
"""

from __future__ import annotations

from collections.abc import Sequence


class NgramDrafter:
    """The index of one sequence, over n-grams of `longest` tokens down to `shortest`."""

    __slots__ = ("_follows", "_indexed", "_lengths")

    def __init__(self, longest: int, shortest: int):
        self._lengths = range(longest, shortest - 1, -1)
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = 0  # the followers of n-grams among the first so many tokens are known

    def learn(self, tokens: Sequence[int], most: int) -> int:
        """Index at most `most` of the tokens that are new; how many that were."""
        first = self._indexed
        self._indexed = min(len(tokens), first + most)
        for at in range(first, self._indexed):
            for length in self._lengths:
                if length <= at:
                    self._follows[tuple(tokens[at - length : at])] = at
        return self._indexed - first

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """What followed the longest match, its latest occurrence; nothing without one, or while tokens are not indexed.

        A match near the end runs into what is proposed itself: a repeated phrase is repeated on.
        """
        if self._indexed < len(tokens):
            return []
        for length in self._lengths:
            at = self._follows.get(tuple(tokens[-length:])) if length <= len(tokens) else None
            if at is not None:
                period = len(tokens) - at
                proposed = list(tokens[at : at + count])
                while len(proposed) < count:
                    proposed.append(proposed[-period])
                return proposed
        return []

"""Drafters that know what the fake device draws, and so are right as often as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.runtime.instance.fake_device import VOCAB, expected_outputs
from triptych.runtime.core.request import Request
from triptych.runtime.instance.speculation import Drafter, DrafterFactory

LONGEST = 64


class Knowing:
    """Proposes what will be drawn, or something else at positions where `wrong` says so."""

    def __init__(self, request: Request, sample: int, wrong: Callable[[int], bool]):
        outputs, _ = expected_outputs(request, LONGEST, sample)
        self._tokens = [*request.prompt, *outputs]
        self._wrong = wrong

    def learn(self, tokens: Sequence[int], most: int) -> int:
        return 0

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        first = len(tokens)
        right = self._tokens[first : first + count]
        return [(token + self._wrong(at)) % VOCAB for at, token in enumerate(right, start=first)]


def knowing(wrong: Callable[[int], bool] = lambda position: False) -> DrafterFactory:
    """Right at every position, but those that `wrong` names."""

    def make(request: Request, sample: int) -> Drafter:
        return Knowing(request, sample, wrong)

    return make


def half_right(request: Request, sample: int) -> Drafter:
    """Wrong at every third position, and behind the point where other samples would be."""
    return Knowing(request, sample, lambda position: position * 7 % 3 == sample % 3)

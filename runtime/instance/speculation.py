"""Speculative decoding as an instance decides about it: who is guessed for, how far, and how it went (decision 025).

A draw is a function of (seed, sample, absolute position) and of the tokens before it. So a guess is verified by drawing at every guessed
position as if decoding went on there, each with its own noise: what was drawn behind a guess counts if the guess is the very token that was
drawn before it. The tokens are those of plain decoding, whatever the guesses. Penalties are the exception: they count the tokens of a slot on
the device, wrong guesses too, so such samples are not guessed for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams

# Rows of a step beyond which guesses find no room. Weights of two bytes are read in the time of about 300 multiplications each on an H100 (990
# TFLOP/s, 3.35 TB/s): a step of so many tokens has nothing left to hide more of them behind.
MAX_ROWS = 256

# A guess costs a row, so it is made only if it is expected to be right at least this often.
WORTHWHILE = 0.25

# Until it is known better: one guess of a sample is expected to be right so often.
FIRST_RATE = 0.6

# Weight of the newest guess in a sample's rate: about the last ten count.
NEWEST = 0.1

# A sample whose guesses do not pay is passed over so many times, and then expected to be right a little more often than that: after two wrong
# guesses it is passed over again.
PASSED_OVER = 16
RETRY_RATE = 0.3


# Tokens that the drafters of all samples take notice of before one step. Prompts are indexed over several steps: 2,048 tokens take about 1 ms of the
# device loop's time, and everybody's next token waits for it.
LEARNED = 2048


@dataclass(frozen=True)
class Speculation:
    """What is guessed. `tokens`: most guesses of one sample in a step. Prompt look-up (ngram.py) matches the last `longest` tokens of a sequence, else
    fewer, down to `shortest`. With a `model` (a spec for `models.hub.resolve_model`) that draft model guesses instead, on the device
    (model_drafting.py)."""

    tokens: int = 4
    longest: int = 4
    shortest: int = 2
    model: str | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"speculative tokens are {self.tokens}; expected at least 1")
        if not 1 <= self.shortest <= self.longest:
            raise ConfigError(
                f"n-grams of {self.shortest} to {self.longest} tokens cannot be matched; expected 1 <= shortest <= longest"
            )


def most_draws(max_num_seqs: int, guesses: int) -> int:
    """Most decode rows, and draws, of a step in which up to `guesses` tokens of each sample are guessed."""
    return max(max_num_seqs, min(max_num_seqs * (1 + guesses), MAX_ROWS))


def can_speculate(params: SamplingParams) -> bool:
    """Whether verification is exact for these parameters."""
    return not params.penalised


@dataclass(frozen=True)
class Guesses:
    """What is guessed of one sample in one step: `count` tokens. `tokens` are they, or nothing where the draft model draws them in the same plan."""

    count: int = 0
    tokens: tuple[int, ...] = ()


NO_GUESSES = Guesses()


class Drafter(Protocol):
    """Guesses how one sample goes on; a policy, so anything it says is right. `tokens` are those of the last call and perhaps more."""

    def learn(self, tokens: Sequence[int], most: int) -> int:
        """Take notice of at most `most` of the tokens that are new, and return of how many. What is left is for the next step."""
        ...

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """At most `count` tokens that may follow `tokens`, nearest first."""
        ...


DrafterFactory = Callable[[Request, int], Drafter]
"""Makes the drafter of one sample of a request."""


@dataclass(frozen=True)
class SpeculationCounts:
    """Since the start: verifications (one sample in one step), tokens guessed in them, and how many of those were right and emitted."""

    verifications: int = 0
    drafted: int = 0
    accepted: int = 0

    def plus(self, drafted: int, accepted: int) -> SpeculationCounts:
        """One verification more."""
        return SpeculationCounts(self.verifications + 1, self.drafted + drafted, self.accepted + accepted)


class Lookahead:
    """How far to guess for one sample, from how its guesses went. Owned by its Stream.

    Attributes:
        drafter: who guesses; None: the draft model.
        rate: share of single guesses that were right, of late. Guess i of a run is right only if all before it are: `rate` to the power of i.
    """

    __slots__ = ("_passed", "drafter", "rate")

    def __init__(self, drafter: Drafter | None):
        self.drafter = drafter
        self.rate = FIRST_RATE
        self._passed = 0

    def depth(self, most: int) -> int:
        """How many guesses are worth their rows, at most `most`."""
        if self.rate < WORTHWHILE and most:
            self._passed += 1
            if self._passed == PASSED_OVER:
                self._passed, self.rate = 0, RETRY_RATE
        chance, count = self.rate, 0
        while count < most and chance >= WORTHWHILE:
            chance *= self.rate
            count += 1
        return count

    def expected(self, count: int) -> float:
        """How many of `count` guesses will be right."""
        return sum(self.rate ** (index + 1) for index in range(count))

    def observe(self, drafted: int, accepted: int) -> None:
        """Of `drafted` guesses the first `accepted` were right; behind the first wrong one nothing is known."""
        for _ in range(accepted):
            self.rate += NEWEST * (1.0 - self.rate)
        if accepted < drafted:
            self.rate -= NEWEST * self.rate

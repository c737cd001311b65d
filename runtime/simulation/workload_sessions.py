"""Conversations: turns whose prompts grow by the last answer and the next question, so that each begins with all of
what came before."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from triptych.runtime.simulation.workload import (
    OUTPUTS,
    PROMPTS,
    QUESTIONS,
    Arrival,
    Lengths,
    Shape,
    WorkloadError,
    poisson,
)


@dataclass(frozen=True)
class Conversations:
    """A population of sessions.

    Attributes:
        turns: mean number of turns, geometrically distributed, at least one.
        first: tokens of the first prompt (system prompt, documents, question).
        question: tokens that every later turn adds.
        answer: tokens generated a turn.
        think: mean seconds from one turn's arrival to the next one's (exponential). The load is open: a turn does not
            wait for the answer before it, so `think` must include the time in which an answer is generated and read.
        most: turns end when the next prompt and answer would exceed so many tokens.
    """

    turns: float = 4.0
    first: Lengths = PROMPTS
    question: Lengths = QUESTIONS
    answer: Lengths = OUTPUTS
    think: float = 30.0
    most: int = 8192

    def __post_init__(self) -> None:
        if not 1 <= self.turns < math.inf or not 0 < self.think < math.inf or self.most < 2:
            raise WorkloadError(f"conversations need turns >= 1, think > 0 and most >= 2, not {self}")


def conversations(rate: float, kind: Conversations, rng: random.Random) -> Iterator[Arrival]:
    """Requests of Poisson sessions, `rate` requests a second in the long run (sessions begin at rate / turns)."""
    starts = poisson(rate / kind.turns, rng)
    begin = next(starts)
    due: list[tuple[float, int, int, int]] = []  # (time, session, prompt tokens, answer tokens)
    serial = sessions = 0
    while True:
        while not due or begin <= due[0][0]:
            prompt, answer = kind.first.draw(rng), kind.answer.draw(rng)
            heapq.heappush(due, (begin, sessions, *_fit(prompt, answer, kind.most)))
            sessions, begin = sessions + 1, next(starts)
        at, session, prompt, answer = heapq.heappop(due)
        yield Arrival(serial, at, Shape(prompt, answer, session))
        serial += 1
        longer, reply = prompt + answer + kind.question.draw(rng), kind.answer.draw(rng)
        if rng.random() * kind.turns >= 1 and longer + reply <= kind.most:
            heapq.heappush(due, (at + rng.expovariate(1 / kind.think), session, longer, reply))


def _fit(prompt: int, answer: int, most: int) -> tuple[int, int]:
    prompt = min(prompt, most - 1)
    return prompt, min(answer, most - prompt)

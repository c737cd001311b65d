"""Training examples: an image as encoder patches, and a conversation whose last words are the answer, as token ids.

The conversation is rendered by the language model's own chat template, exactly as a server renders it, with the image's placeholder
repeated once for each embedding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from triptych.tools.demo_vlm.questions import Question, Skill, pick, questions
from triptych.tools.demo_vlm.scenes import Scene, digit_scene, shapes_scene

DIGIT_SHARE = 0.25  # of the images
ANSWER_TOKENS = 4  # room for the longest answer and the end of the turn

Pair = tuple[np.ndarray, Question]
"""An image's pixels [side, side, 3] uint8, and one question about it."""


@dataclass(frozen=True)
class Batch:
    """B examples.

    Attributes:
        pixels: [B, side, side, 3] uint8.
        tokens: [B, length] int32, padded at the end with zeros.
        image_at: [B] index of the first placeholder.
        places: [B, ANSWER_TOKENS] index of the token whose hidden state predicts each answer token.
        targets: [B, ANSWER_TOKENS] the answer's token ids; -1 where there is none.
        skills: of each question.
    """

    pixels: np.ndarray
    tokens: np.ndarray
    image_at: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    skills: tuple[Skill, ...]


@dataclass(frozen=True)
class Conversations:
    """How a question becomes tokens: `render` gives the text up to the answer, with `placeholder` once where the image goes."""

    render: Callable[[str], str]
    encode: Callable[[str], Sequence[int]]
    placeholder: int
    embeddings: int
    end: int

    def tokens(self, question: Question) -> tuple[list[int], int, list[int]]:
        """(prompt with the placeholder repeated, index of the first one, answer and end of turn)."""
        once = list(self.encode(self.render(question.text)))
        at = once.index(self.placeholder)
        prompt = once[:at] + [self.placeholder] * self.embeddings + once[at + 1 :]
        return prompt, at, [*self.encode(question.answer), self.end]


def scene_of(seed: int, digits: np.ndarray, labels: np.ndarray) -> Scene:
    """The scene of a seed: shapes or, in a quarter of the cases, a digit."""
    if random.Random(f"kind {seed}").random() < DIGIT_SHARE:
        return digit_scene(seed, digits, labels)
    return shapes_scene(seed)


def examples(
    first: int, count: int, digits: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[np.ndarray, list[Question]]]:
    """(pixels, at most one question of each skill) of the scenes with seeds first, first + 1, …"""
    for seed in range(first, first + count):
        scene = scene_of(seed, digits, labels)
        yield scene.pixels, pick(questions(scene, seed), random.Random(f"pick {seed}"))


def swaps(pairs: Sequence[Pair]) -> list[Pair]:
    """The same words asked about two images with different answers: both of each such pair."""
    by_text: dict[str, Pair] = {}
    out: list[Pair] = []
    for pixels, question in pairs:
        other = by_text.pop(question.text, None)
        if other is not None and other[1].answer != question.answer:
            out += [other, (pixels, question)]
        else:
            by_text[question.text] = (pixels, question)
    return out


def batch_of(pairs: Sequence[tuple[np.ndarray, Question]], conversations: Conversations, length: int) -> Batch:
    """Examples of one image and one question each. Raises ValueError if a conversation is longer than `length`."""
    tokens = np.zeros((len(pairs), length), np.int32)
    image_at = np.zeros(len(pairs), np.int32)
    places = np.zeros((len(pairs), ANSWER_TOKENS), np.int32)
    targets = np.full((len(pairs), ANSWER_TOKENS), -1, np.int32)
    for row, (_, question) in enumerate(pairs):
        prompt, at, answer = conversations.tokens(question)
        whole = prompt + answer[:-1]
        if len(whole) > length or len(answer) > ANSWER_TOKENS:
            raise ValueError(
                f"{question.text!r} -> {question.answer!r} takes {len(whole)} tokens, {len(answer)} of them the answer's"
            )
        tokens[row, : len(whole)] = whole
        image_at[row] = at
        places[row, : len(answer)] = len(prompt) - 1 + np.arange(len(answer))
        targets[row, : len(answer)] = answer
    return Batch(
        np.stack([pixels for pixels, _ in pairs]), tokens, image_at, places, targets, tuple(q.skill for _, q in pairs)
    )

"""Questions about a scene, with their one right answer, and the skill that each asks for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from triptych.tools.demo_vlm.scenes import Scene, Thing

APART = 20  # pixels by which things must be apart before one is called left of, or above, the other


class Skill(StrEnum):
    """What a question asks for; accuracies are reported by it."""

    COLOUR = "colour"
    SHAPE = "shape"
    DIGIT = "digit"
    COUNT = "count"
    RELATION = "relation"


@dataclass(frozen=True)
class Question:
    """Its words, and an answer of one or two words."""

    skill: Skill
    text: str
    answer: str


def questions(scene: Scene, seed: int) -> list[Question]:
    """Everything that can be asked about `scene` without ambiguity, in words chosen by `seed`."""
    rng = random.Random(f"questions {seed}")
    if scene.digit is not None:
        texts = ("Which digit is this?", "What number is shown in the image?", "Read the digit.")
        return [Question(Skill.DIGIT, rng.choice(texts), str(scene.digit))]
    return [*_about_each(scene.things, rng), *_counts(scene.things, rng), *_relations(scene.things, rng)]


def _about_each(things: Sequence[Thing], rng: random.Random) -> list[Question]:
    shapes, colours = Counter(t.shape for t in things), Counter(t.colour for t in things)
    found: list[Question] = []
    for thing in things:
        if shapes[thing.shape] == 1:
            texts = (f"What colour is the {thing.shape}?", f"What is the colour of the {thing.shape}?")
            found.append(Question(Skill.COLOUR, rng.choice(texts), thing.colour))
        if colours[thing.colour] == 1:
            texts = (f"What shape is the {thing.colour} object?", f"What is the {thing.colour} thing?")
            found.append(Question(Skill.SHAPE, rng.choice(texts), thing.shape))
    if len(things) == 1:
        found.append(Question(Skill.SHAPE, "What is in the image?", things[0].shape))
        found.append(Question(Skill.COLOUR, "What colour is the object?", things[0].colour))
    return found


def _counts(things: Sequence[Thing], rng: random.Random) -> list[Question]:
    texts = ("How many objects are there?", "How many shapes are in the image?")
    found = [Question(Skill.COUNT, rng.choice(texts), str(len(things)))]
    by_shape = Counter(t.shape for t in things)
    shape = rng.choice(list(by_shape))
    found.append(Question(Skill.COUNT, f"How many objects have the shape of a {shape}?", str(by_shape[shape])))
    return found


def _relations(things: Sequence[Thing], rng: random.Random) -> list[Question]:
    """Between things that are the only ones of their shape; places of a single one."""
    alone = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
    found: list[Question] = []
    for first in alone:
        for second in alone:
            if first is second:
                continue
            for axis, words in (("x", ("left of", "right of")), ("y", ("above", "below"))):
                gap = getattr(second, axis) - getattr(first, axis)
                if abs(gap) < APART:
                    continue
                word = rng.choice(words)
                answer = "yes" if (gap > 0) == (word == words[0]) else "no"
                found.append(Question(Skill.RELATION, f"Is the {first.shape} {word} the {second.shape}?", answer))
    return found


def pick(found: Sequence[Question], rng: random.Random, each: int = 1) -> list[Question]:
    """At most `each` questions of every skill, so that none of them drowns the others."""
    by_skill: dict[Skill, list[Question]] = {}
    for question in found:
        by_skill.setdefault(question.skill, []).append(question)
    return [q for several in by_skill.values() for q in rng.sample(several, min(each, len(several)))]

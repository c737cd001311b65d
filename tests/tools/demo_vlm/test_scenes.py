"""Scenes are what they say, drawn from their seed alone, and what is for judging is never trained on."""

import math
import random

import numpy as np
import pytest

from triptych.tools.demo_vlm.examples import ANSWER_TOKENS, Conversations, batch_of
from triptych.tools.demo_vlm.questions import Question, Skill, pick, questions
from triptych.tools.demo_vlm.scenes import (
    COLOURS,
    HELD_OUT,
    SIZE,
    Scene,
    Thing,
    digit_scene,
    held_out_pair,
    shapes_scene,
)

DIGITS = np.full((10, 28, 28), 255, np.uint8)
LABELS = np.arange(10)


@pytest.mark.parametrize("seed", [0, 7, HELD_OUT + 3])
def test_a_seed_gives_one_scene(seed: int) -> None:
    first, second = shapes_scene(seed), shapes_scene(seed)
    assert first.things == second.things and (first.pixels == second.pixels).all()
    assert first.pixels.shape == (SIZE, SIZE, 3) and first.pixels.dtype == np.uint8


def test_things_do_not_touch_and_have_their_colour() -> None:
    for seed in range(40):
        scene = shapes_scene(seed)
        for index, thing in enumerate(scene.things):
            for other in scene.things[:index]:
                assert math.hypot(thing.x - other.x, thing.y - other.y) > thing.radius + other.radius
            if thing.shape in ("circle", "square", "star"):  # filled at their centre
                colour = np.asarray(COLOURS[thing.colour], float)
                middle = scene.pixels[thing.y - 2 : thing.y + 3, thing.x - 2 : thing.x + 3].reshape(-1, 3).mean(axis=0)
                assert np.abs(middle - colour).max() < 10


def test_some_pairs_are_only_for_judging() -> None:
    trained = {(t.shape, t.colour) for seed in range(300) for t in shapes_scene(seed).things}
    judged = {(t.shape, t.colour) for seed in range(300) for t in shapes_scene(HELD_OUT + seed).things}
    assert not any(held_out_pair(*pair) for pair in trained)
    assert sum(held_out_pair(*pair) for pair in judged) == 6


def test_digits_for_judging_are_others() -> None:
    trained = {digit_scene(seed, DIGITS, LABELS).digit for seed in range(60)}
    judged = {digit_scene(HELD_OUT + seed, DIGITS, LABELS).digit for seed in range(60)}
    assert trained == set(range(8)) and judged == {8, 9}


def test_questions_have_one_right_answer() -> None:
    things = (
        Thing("circle", "red", 50, 50, 20),
        Thing("star", "blue", 150, 60, 20),
        Thing("star", "green", 60, 160, 20),
    )
    asked = questions(Scene(things, None, np.zeros((1, 1, 3), np.uint8)), 0)
    by_text = {q.text: q.answer for q in asked}
    assert len(by_text) == len(asked)
    assert {q.answer for q in asked if q.skill is Skill.COLOUR} == {"red"}  # two stars: their colour is ambiguous
    assert {q.answer for q in asked if q.skill is Skill.SHAPE} == {"circle", "star"}
    assert not [q for q in asked if q.skill is Skill.RELATION]  # nothing but the circle is the only one of its shape
    counts = [q for q in asked if q.skill is Skill.COUNT]
    assert "3" in {q.answer for q in counts}


def test_relations_hold() -> None:
    things = (Thing("circle", "red", 40, 50, 20), Thing("star", "blue", 150, 60, 20))
    for seed in range(20):
        for q in questions(Scene(things, None, np.zeros((1, 1, 3), np.uint8)), seed):
            if q.skill is Skill.RELATION:
                circle_first = q.text.startswith("Is the circle")
                assert q.answer == ("yes" if circle_first == ("left" in q.text) else "no")


def test_every_skill_is_picked_once() -> None:
    asked = [Question(Skill.COLOUR, str(n), "red") for n in range(5)] + [Question(Skill.COUNT, "n", "1")]
    assert [q.skill for q in pick(asked, random.Random(0))] == [Skill.COLOUR, Skill.COUNT]


def test_a_batch_says_what_is_predicted_where() -> None:
    talk = Conversations(lambda text: f"a*{text}", lambda text: [ord(c) for c in text], ord("*"), 3, 0)
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    batch = batch_of([(pixels, Question(Skill.COUNT, "bc", "12"))], talk, 12)
    assert batch.tokens[0].tolist() == [97, 42, 42, 42, 98, 99, 49, 50, 0, 0, 0, 0]
    assert batch.image_at[0] == 1
    assert batch.places[0].tolist()[:3] == [5, 6, 7] and batch.targets[0].tolist() == [49, 50, 0, -1]
    assert batch.targets.shape == (1, ANSWER_TOKENS)
    with pytest.raises(ValueError, match="takes 8 tokens"):
        batch_of([(pixels, Question(Skill.COUNT, "bc", "12"))], talk, 7)

"""Images that this project makes itself, with everything that is in them: coloured shapes in different places, or one digit.

A scene is drawn from a seed alone. Seeds below HELD_OUT are for training, those from there on for judging; on top of that, some
combinations of shape and colour (`held_out_pair`) never appear in training, so that a right answer about them was not learned by heart.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 224  # pixels, both ways
HELD_OUT = 1 << 40  # the first seed that no training image has
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 88, 200),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (250, 130, 20),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
GROUNDS = ((128, 128, 128), (170, 190, 200), (200, 185, 160), (90, 105, 120), (180, 200, 170))
_RADIUS = (22, 38)


@dataclass(frozen=True)
class Thing:
    """A shape: its name, colour, centre and radius in pixels."""

    shape: str
    colour: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Scene:
    """What an image shows: some things, none touching another, or one digit."""

    things: tuple[Thing, ...]
    digit: int | None
    pixels: np.ndarray  # [SIZE, SIZE, 3] uint8


def held_out_pair(shape: str, colour: str) -> bool:
    """Whether things of this shape and colour are kept for judging: one colour of each shape."""
    return list(COLOURS)[SHAPES.index(shape)] == colour


def shapes_scene(seed: int, most: int = 5) -> Scene:
    """1 to `most` things on a plain, slightly noisy ground."""
    rng = random.Random(f"shapes {seed}")
    things: list[Thing] = []
    pairs = [(s, c) for s in SHAPES for c in COLOURS if seed >= HELD_OUT or not held_out_pair(s, c)]
    for _ in range(rng.randint(1, most)):
        shape, colour = rng.choice(pairs)
        place = _free_place(rng, things)
        if place is not None:
            things.append(Thing(shape, colour, *place))
    ground = rng.choice(GROUNDS)
    image = Image.new("RGB", (SIZE, SIZE), ground)
    draw = ImageDraw.Draw(image)
    for thing in things:
        _draw(draw, thing, rng.uniform(-0.3, 0.3))
    return Scene(tuple(things), None, _noisy(np.asarray(image), seed))


def digit_scene(seed: int, digits: np.ndarray, labels: np.ndarray) -> Scene:
    """One handwritten digit of `digits` [n, 28, 28] uint8, in some size, place and colour. The last fifth of `digits` is for judging."""
    rng = random.Random(f"digit {seed}")
    first = len(digits) * 4 // 5
    index = rng.randrange(first, len(digits)) if seed >= HELD_OUT else rng.randrange(first)
    size = rng.randint(80, 180)
    ink = Image.fromarray(digits[index]).resize((size, size), Image.Resampling.BICUBIC)
    ground, colour = (
        rng.choice(((20, 20, 20), (90, 90, 90), (40, 60, 90))),
        rng.choice(((255, 255, 255), (250, 220, 120), (160, 230, 255))),
    )
    image = Image.new("RGB", (SIZE, SIZE), ground)
    place = rng.randint(0, SIZE - size), rng.randint(0, SIZE - size)
    image.paste(Image.new("RGB", (size, size), colour), place, ink)
    return Scene((), int(labels[index]), _noisy(np.asarray(image), seed))


def _free_place(rng: random.Random, things: list[Thing]) -> tuple[int, int, int] | None:
    """(x, y, radius) where a thing touches no other, and not the edge; None if none was found."""
    for _ in range(60):
        radius = rng.randint(*_RADIUS)
        x, y = (rng.randint(radius + 4, SIZE - radius - 4) for _ in range(2))
        if all(math.hypot(x - t.x, y - t.y) > radius + t.radius + 8 for t in things):
            return x, y, radius
    return None


def _noisy(pixels: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed % (1 << 63)).normal(0.0, 4.0, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, turn: float) -> None:
    colour, x, y, r = COLOURS[thing.colour], thing.x, thing.y, thing.radius

    def corners(count: int, radii: tuple[float, ...], start: float) -> list[tuple[float, float]]:
        angles = [start + turn + 2 * math.pi * k / count for k in range(count)]
        return [
            (x + radii[k % len(radii)] * math.cos(a), y + radii[k % len(radii)] * math.sin(a))
            for k, a in enumerate(angles)
        ]

    match thing.shape:
        case "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        case "ring":
            draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(6, r // 3))
        case "square":
            draw.polygon(corners(4, (r,), math.pi / 4), fill=colour)
        case "triangle":
            draw.polygon(corners(3, (r,), -math.pi / 2), fill=colour)
        case "star":
            draw.polygon(corners(10, (r, 0.42 * r), -math.pi / 2), fill=colour)
        case "cross":
            for start in (math.pi / 4, 3 * math.pi / 4):
                dx, dy = r * math.cos(start + turn), r * math.sin(start + turn)
                draw.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=max(8, r // 2))

"""Requests with pictures for the load of trials: one, several, the same ones again, new ones, and uploads that are used by handle.

`fresh_kinds` makes so many requests, each with a picture of its own, that a small media pool has long forgotten the first when they begin again: to
the instances their pictures are new each time.
"""

from __future__ import annotations

import random
from typing import Any

from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import parse
from triptych.tools.trials.load import Spec
from triptych.tools.trials.pictures import picture

MODEL = (
    "--model=dummy:toy-vlm",
    "--served-model-name=toy-vlm",
    "--max-model-len=256",
    "--media-pages=33",
    "--spare-media-mb=1",
)
"""Flags of `triptych serve`: the toy model that sees, with a media pool of 32 pictures, and a gateway that keeps about a thousand of the last ones."""

FRESH = 100  # three times what the media pool holds
PLACEHOLDER = "<|pad|>"
SEEDED: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True}
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


def sees(topology: str) -> bool:
    """Whether someone encodes."""
    return any(Role.ENCODE in spec.roles for spec in parse(topology).instances())


def media_kinds(rng: random.Random, show: str = PLACEHOLDER) -> list[Spec]:
    """Requests about a few pictures that come again and again. `show`: the model's placeholder."""
    one, two, three, many = (tuple(picture(rng.getrandbits(32)) for _ in range(count)) for count in (1, 2, 1, 6))
    return [
        Spec("picture", {"prompt": f"{show}What is this?", "max_tokens": 60, **GREEDY}, images=one),
        Spec("two pictures", {"prompt": f"First {show} then {show}: which?", "max_tokens": 40, **GREEDY}, images=two),
        Spec("picture, two samples", {"prompt": f"{show}Say it at length.", "max_tokens": 50, "seed": 3, "n": 2, **SEEDED}, images=three),
        Spec("six pictures", {"prompt": " ".join([show] * 6), "max_tokens": 8, **GREEDY}, images=many),
        Spec("uploaded", {"prompt": f"{show}What?", "max_tokens": 20, **GREEDY}, images=two[:1], uploaded=True),
        Spec("the same one, uploaded", {"prompt": f"{show} {show}", "max_tokens": 6, **GREEDY}, images=one * 2, uploaded=True),
    ]  # fmt: skip


def fresh_kinds(rng: random.Random, count: int = FRESH, show: str = PLACEHOLDER) -> list[Spec]:
    """`count` requests of one or two pictures that no other request has."""
    found = []
    for number in range(count):
        images = tuple(picture(rng.getrandbits(32)) for _ in range(rng.choice([1, 1, 2])))
        prompt = show * len(images) + "new"
        name = f"new picture {number}"
        found.append(Spec(name, {"prompt": prompt, "max_tokens": rng.randint(2, 12), **GREEDY}, images=images))
    return found

"""A load as requests that a model understands: random tokens that no two prompts share, and pictures that no two requests share.

Prompts are token ids, so that their lengths are exact whatever the tokenizer. A picture is a file made from a number: a
field of eight by eight random colours, enlarged, as a small JPEG. Its content decides how large the file is and nothing that an encoder does.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench.sweep.loads import Sent
from triptych.tools.bench.workload import Item

ORDINARY = 0.9  # of the ids: models keep those that mean something to them at the end
DRAWERS = 8  # threads that draw pictures; Pillow lets go of the interpreter while it resizes and encodes
FIELD = 8  # random colours on a side


@dataclass(frozen=True)
class PicturedItem(Item):
    """A request with files; its prompt has one placeholder for each."""

    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """Ids that prompts are made of, and the one that stands for a picture."""

    ordinary: tuple[int, ...]
    placeholder: int | None = None


def ordinary_tokens(vocab: int, special: Sequence[int]) -> tuple[int, ...]:
    """Ids of the first nine tenths that are not special."""
    return tuple(sorted(set(range(max(1, int(vocab * ORDINARY)))) - set(special)))


def items(requests: Sequence[Sent], tokens: Tokens, size: tuple[int, int], seed: str) -> list[PicturedItem]:
    """The requests with prompts; the same for the same seed. Raises ConfigError if pictures are needed and cannot be drawn."""
    rng = random.Random(seed)
    numbers = [[rng.getrandbits(48) for _ in range(one.images)] for one in requests]
    flat = [number for of_one in numbers for number in of_one]
    if flat:
        check_pictures()
    with ThreadPoolExecutor(DRAWERS) as threads:
        files = iter(list(threads.map(lambda number: picture(number, size), flat)))
    made = []
    for one in requests:
        text = tuple(rng.choices(tokens.ordinary, k=one.text))
        shown = () if tokens.placeholder is None else (tokens.placeholder,) * one.images
        images = tuple(next(files) for _ in range(one.images))
        made.append(PicturedItem(one.at, shown + text, one.output, True, images))
    return made


def picture(number: int, size: tuple[int, int]) -> bytes:
    """A JPEG of `size` = (width, height) pixels; another number is another picture to every cache."""
    from PIL import Image

    colours = np.random.default_rng(number).integers(0, 256, (FIELD, FIELD, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def check_pictures() -> None:
    """Raises ConfigError, with what to do, if no picture can be drawn here."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError("loads with images draw them with Pillow: pip install 'triptych[media]'") from error

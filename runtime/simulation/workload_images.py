"""Images in a workload: how many a request has, how large they are, and how often the same one is asked about again.

All images of a workload have one size. They stand at the beginning of a prompt, before its text, so that two questions
about the same images share their KV too, where they are computed by the same instance. The requests of a session have the
images of its first one.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from triptych.runtime.simulation.workload import Arrival, Image, Shape, WorkloadError

RECENT = 256  # images that may be asked about again: what people look at together is younger than that


@dataclass(frozen=True)
class Images:
    """Images of a workload.

    Attributes:
        share: of the requests (or sessions) that have any.
        count: images each of those has.
        tokens, patches: embeddings that an image becomes, and encoder positions that it takes.
        uses: how often an image is used on average; 1: no two are equal.
    """

    share: float
    count: int = 1
    tokens: int = 576
    patches: int = 577
    uses: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise WorkloadError(f"the share of requests with images is {self.share}; expected 0 to 1")
        if min(self.count, self.tokens, self.patches) < 1 or not 1 <= self.uses:
            raise WorkloadError(f"images need a count, tokens, patches and uses of at least 1, not {self}")

    @property
    def room(self) -> int:
        """Tokens that the images of one request take."""
        return self.count * self.tokens


def with_images(arrivals: Iterator[Arrival], images: Images, seed: int) -> Iterator[Arrival]:
    """Put images before the prompts of a share of the arrivals."""
    rng, made = random.Random(f"images/{seed}"), 0
    recent: deque[int] = deque(maxlen=RECENT)
    sessions: dict[int, tuple[Image, ...]] = {}
    for arrival in arrivals:
        session = arrival.shape.session
        pictures = sessions.get(session) if session is not None else None
        if pictures is None:
            names = []
            for _ in range(images.count if rng.random() < images.share else 0):
                if recent and rng.random() * images.uses >= 1:
                    names.append(rng.choice(recent))
                else:
                    names.append(made)
                    recent.append(made)
                    made += 1
            pictures = tuple(Image(name, images.tokens, images.patches) for name in names)
            if session is not None:
                sessions[session] = pictures
        yield replace(arrival, shape=_pictured(arrival.shape, pictures)) if pictures else arrival


def _pictured(shape: Shape, images: tuple[Image, ...]) -> Shape:
    longer = shape.prompt_tokens + sum(image.tokens for image in images)
    return replace(shape, prompt_tokens=longer, images=images)

"""Token ids for requests that are known by their lengths: cheap enough for millions, and equal exactly where KV may be
shared.

Prompts are cut from one pool of random ids, so that making one costs a copy of references. What tells prompts apart is
their first id: prefix keys are chained (runtime/instance/prefix.py), so prompts that begin differently share nothing.
Requests of one session read the same endless stream, prompts and answers alike; blocks with names read a stream each;
all others read a stream of their own. Images stand before that, each with a stream of its own. Ids are beyond any vocabulary on purpose: no device ever sees them.
"""

from __future__ import annotations

import numpy as np

from triptych.runtime.simulation.workload import Arrival

POOL = 1 << 18  # ids; longer than the longest prompt of the traces (126,195 tokens), small enough to be made at once
FIRST_NAME = 1 << 20  # ids of the pool are below, names of streams above
_KINDS = 4
_REQUEST, _SESSION, _BLOCK, _IMAGE = range(_KINDS)


class TokenSource:
    """Prompts and drawn tokens of arrivals; a function of the seed and the arrival alone."""

    def __init__(self, seed: int = 0):
        pool = np.random.default_rng(seed).integers(FIRST_NAME, size=POOL).tolist()
        self._pool = tuple(pool + pool)  # twice, so that every stretch from every start is one slice

    def prompt(self, arrival: Arrival) -> tuple[int, ...]:
        """Exactly `prompt_tokens` ids."""
        shape = arrival.shape
        if not (shape.blocks or shape.images):
            return self._slice(*_stream(arrival), shape.prompt_tokens)
        size, left = shape.block_tokens, shape.prompt_tokens - shape.image_tokens
        out: list[int] = []
        for image in shape.images:
            out += self._slice(_IMAGE, image.name, image.tokens)
        if not shape.blocks:
            out += self._slice(*_stream(arrival), left)
        for block in shape.blocks:
            out += self._slice(_BLOCK, block, min(size, left))
            left -= size
        return tuple(out)

    def tokens(self, arrival: Arrival, position: int, count: int) -> list[int]:
        """The ids drawn from absolute `position` on: those of the stream, so that a session's next prompt repeats the
        answer."""
        kind, name = _stream(arrival)
        start = _offset(kind, name) + position - arrival.shape.image_tokens
        if position + count > POOL:
            raise ValueError(f"position {position + count} is beyond the pool of {POOL}")
        return list(self._pool[start : start + count])

    def _slice(self, kind: int, name: int, length: int) -> tuple[int, ...]:
        if length > POOL:
            raise ValueError(f"a prompt of {length} tokens is longer than the pool of {POOL}")
        start = _offset(kind, name)
        return (FIRST_NAME + name * _KINDS + kind, *self._pool[start + 1 : start + length])


def _stream(arrival: Arrival) -> tuple[int, int]:
    session = arrival.shape.session
    return (_REQUEST, arrival.serial) if session is None else (_SESSION, session)


def _offset(kind: int, name: int) -> int:
    return (name * 2654435761 + kind * 40503) % POOL  # Knuth's multiplicative hash: neighbours start far apart

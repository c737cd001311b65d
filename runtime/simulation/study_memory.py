"""The cycle collector during a study."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the cycle collector run seldom: nothing that a request leaves behind refers back to itself, so that there is
    hardly anything to find, and every collection looks at all that is new."""
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(2_000_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

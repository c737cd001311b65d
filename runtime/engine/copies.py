"""Page copies of a plan as the inputs of the program that makes them."""

from __future__ import annotations

import numpy as np

from triptych.runtime.engine.programs import COPY_PAGES


def copy_tables(copies: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """Page copies as tables of COPY_PAGES pairs, in order; a page written in one table is only read in a later one."""
    tables: list[np.ndarray] = []
    used = COPY_PAGES
    written: set[int] = set()
    for source, destination in copies:
        if used == COPY_PAGES or source in written or destination in written:
            tables.append(np.zeros((2, COPY_PAGES), np.int32))
            used, written = 0, set()
        tables[-1][:, used] = source, destination
        written.add(destination)
        used += 1
    return tables

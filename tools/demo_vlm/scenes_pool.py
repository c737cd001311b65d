"""Scenes drawn by several processes while the device trains: an endless supply, no image twice."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator
from functools import partial

import numpy as np

from triptych.tools.demo_vlm.examples import examples
from triptych.tools.demo_vlm.questions import Question

CHUNK = 64  # scenes a task


def _chunk(digits: np.ndarray, labels: np.ndarray, first: int) -> list[tuple[np.ndarray, Question]]:
    return [(pixels, question) for pixels, asked in examples(first, CHUNK, digits, labels) for question in asked]


def draw(
    first: int, count: int, digits: np.ndarray, labels: np.ndarray, processes: int
) -> Generator[tuple[np.ndarray, Question], None, None]:
    """(pixels, question) of the scenes with seeds first … first + count - 1, in that order. The processes are started afresh: nothing of a
    device runtime is inherited."""
    tasks = range(first, first + count, CHUNK)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for pairs in pool.imap(partial(_chunk, digits, labels), tasks, chunksize=1):
            yield from pairs

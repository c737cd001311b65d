"""The deployment that several files do harm to, each leaving it whole and idle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.deployment import Deployment, deployed


@pytest.fixture(scope="session")
def server() -> Iterator[Deployment]:
    """Two of each kind, so that each may be lost; sequences that take seconds; room for a storm to wait in.

    Files that use it are in tests/together.py; others have a `server` of their own.
    """
    flags = ("--max-model-len=720", "--num-pages=513", "--max-num-batched-tokens=32", "--max-waiting=400")
    with deployed("--topology=2P2D", *flags) as running:
        yield running

"""One real worker serves all tests of this folder that need one: it takes long to build and holds nothing between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runtime.worker.bench import Bench


@pytest.fixture(scope="package")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()

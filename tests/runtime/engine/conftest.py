"""One compiled toy engine for all tests of this folder; tests leave garbage in its pages and slots for each other on purpose."""

from __future__ import annotations

import pytest

from tests.runtime.engine.driver import Driver, compiled
from triptych.runtime.engine.engine import Engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    return compiled()


@pytest.fixture
def driver(engine: Engine) -> Driver:
    return Driver(engine)

"""One fake gateway and one HTTP server for all tests of a file; each test finds them as new."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.runtime.gateway.http.fake_gateway import World


@pytest.fixture(scope="module")
def _world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def world(_world: World) -> World:
    _world.gateway.forget()
    _world.healthy(True)
    return _world


@pytest.fixture(scope="module")
def url(_world: World) -> Iterator[str]:
    with _world.http() as url:
        yield url


@pytest.fixture
def http(world: World, url: str) -> Iterator[httpx2.Client]:
    """A client of a server with the default settings."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client

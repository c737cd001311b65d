"""The load generator over HTTP counts the tokens that were sent, and names what went wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.runtime.gateway.http.fake_gateway import World, reply
from triptych.runtime.core.errors import Status, TriptychError
from triptych.tools.bench import command
from triptych.tools.bench.client import Received
from triptych.tools.bench.http_client import HttpLoadClient
from triptych.tools.bench.workload import Item


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def received(url: str, item: Item) -> list[Received]:
    async def main() -> list[Received]:
        client = HttpLoadClient(url, "key", model="toy", share_prefixes=False, run="r")
        try:
            return [message async for message in client.stream(item)]
        finally:
            await client.close()

    return asyncio.run(main())


def test_every_token_is_counted_once(world: World) -> None:
    with world.http() as url:
        for prompt in ("ab", (97, 98)):
            messages = received(url, Item(0.0, prompt, 3, True))
            assert sum(message.tokens for message in messages) == 3
            assert messages[-1].prompt_tokens == 2
    text, ids = world.gateway.requests
    assert (text.prompt, list(ids.token_ids.ids)) == ("ab", [97, 98])
    assert text.sampling.temperature == 0 and text.sampling.ignore_eos and text.cache_salt == "r-1"


@pytest.mark.parametrize("after", [0, 2])
def test_failures_have_their_status(world: World, after: int) -> None:
    world.gateway.fail_after = (after, grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", 1.0)
    with world.http() as url, pytest.raises(TriptychError, match="the queue is full") as caught:
        received(url, Item(0.0, "ab", 3, True))
    assert caught.value.status is (Status.INTERNAL if after else Status.RESOURCE_EXHAUSTED)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(TriptychError) as caught:
        received("http://127.0.0.1:1", Item(0.0, "ab", 3, True))
    assert caught.value.status is Status.UNAVAILABLE


def test_the_command_compares_both_doors_of_one_server(world: World, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out.json"
    with world.http() as url:
        flags = ["--address", world.address, "--compare", world.address, url, "--rounds", "1", "--num-requests", "4"]
        status = command.run(
            parser.parse_args([*flags, "--input-len", "5", "--output-len", "4", "--json", str(out), "--rate", "inf"])
        )
    assert status == 0
    runs = json.loads(out.read_text())["runs"]
    assert runs.keys() == {world.address, url}
    assert {run["summary"]["output_tokens"] for run in runs.values()} == {4 * min(4, len(reply("xxxxx", 0)))}

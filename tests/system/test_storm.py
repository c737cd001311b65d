"""Three hundred requests at once over four worker processes, many of them cancelled or abandoned: every one ends once, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from tests.system.deployment import Deployment
from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import (
    CancelledByClientError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    TriptychError,
)

REQUESTS = 300


async def one(client: AsyncClient, index: int, rng: random.Random) -> str:
    """Run one request to its end, or leave it on purpose; returns how it ended."""
    prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 110))]
    room = 160 - len(prompt)
    arguments: dict[str, Any] = {
        "token_ids": prompt,
        "max_tokens": rng.randrange(1, min(40, room)),
        "seed": index,
        "n": rng.choice([1, 1, 1, 2]),
        "request_id": f"storm-{index}",
    }
    fate = rng.choice(["finish", "finish", "finish", "disconnect", "abort", "deadline"])
    if fate == "deadline":
        arguments["timeout"] = rng.uniform(0.01, 1.0)
    if fate == "abort":  # what runs for long is there still when the abort comes
        arguments |= {"max_tokens": 500, "ignore_eos": True, "n": 1}
    leave_after = rng.randrange(0, 12)
    seen = 0
    try:
        stream = client.generate(**arguments)
        if (
            fate == "abort" and leave_after < 6
        ):  # while it waits for its turn: an answer may be over before an abort of it arrives
            await abort_when_known(client, f"storm-{index}")
            fate = "aborted"
        async for chunk in stream:
            seen += len(chunk.tokens)
            if fate == "disconnect" and seen >= leave_after:
                stream.close()
                return "disconnected"
            if fate == "abort" and seen >= leave_after:
                await client.abort(f"storm-{index}")
                fate = "aborted"
        assert all(sample.finish_reason for sample in stream.result.samples)
        return "finished"
    except CancelledByClientError:
        assert fate == "aborted"
        return "aborted"
    except DeadlineError:
        assert fate == "deadline"
        return "deadline"
    except OverloadedError:
        return "refused"
    except TriptychError as error:
        if "no running request" in error.message or "abort" in error.message.lower():
            return "aborted after its end"
        raise


async def abort_when_known(client: AsyncClient, request_id: str) -> None:
    """Abort a request that was sent just now: the server may hear of the abort first. Raises NotFoundError if it never runs."""
    for _ in range(20):
        try:
            return await client.abort(request_id)
        except NotFoundError:
            await asyncio.sleep(0.01)
    await client.abort(request_id)


@pytest.mark.limit(400)
def test_every_request_of_a_storm_ends_once_and_leaves_nothing(server: Deployment) -> None:
    async def storm() -> Counter[str]:
        rng = random.Random(2)
        async with AsyncClient(server.address) as client:
            results = await asyncio.gather(*(one(client, i, random.Random(rng.random())) for i in range(REQUESTS)))
        return Counter(results)

    ends = asyncio.run(storm())
    print(dict(ends))
    assert sum(ends.values()) == REQUESTS
    assert ends["finished"] > REQUESTS / 4
    assert ends["disconnected"] and ends["aborted"] and ends["deadline"]
    states = server.wait_idle()
    assert set(states) == {"prefill-0", "prefill-1", "decode-0", "decode-1"}
    assert all(states[name].counters["kv_bytes_received"] > 0 for name in ("decode-0", "decode-1"))
    for name, state in states.items():
        assert state.counters["compiled_after_ready"] == 0, name


@pytest.mark.limit(300)
def test_after_the_storm_the_server_answers_as_before(server: Deployment) -> None:
    async def ask() -> list[list[int]]:
        async with AsyncClient(server.address) as client:
            results = [await client.complete(token_ids=[1, 2, 3], max_tokens=8, temperature=0) for _ in range(2)]
        return [result.samples[0].token_ids for result in results]

    first, second = asyncio.run(ask())
    assert len(first) == 8 and first == second

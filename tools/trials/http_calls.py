"""One strange HTTP request, byte by byte over a socket: what a client library would never send is what this is for."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
from collections.abc import Sequence
from typing import Any

from triptych.tools.trials.calls import LEFT, LIMIT
from triptych.tools.trials.corpus import SAYINGS
from triptych.tools.trials.strange import TEXTS, mutated, noise
from triptych.tools.trials.strange_media import file

ROUTES = (
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/live"),
    ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/version"),
)  # fmt: skip
POSTS = 6.0  # how much more often a route with a body is taken
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW")
EXPECTED = frozenset({200, 400, 401, 404, 405, 408, 411, 413, 415, 422, 429, 431, 499, 501, 503, 504})
"""Statuses that say what was wrong with a request; 500 and 502 say that the server does not know."""
NOTHING = 0
"""The server closed the connection without an answer: right for what is no HTTP."""
READS = 200_000  # bytes of an answer that are read before the client leaves

Json = Any


async def request(
    address: str, rng: random.Random, model: str, headers: Sequence[str] = ()
) -> tuple[str, int | str, bytes]:
    """(route, status or NOTHING or LEFT, the bytes sent) of one request. `headers`: lines such as an Authorization."""
    method, path = rng.choices(ROUTES, [POSTS if name == "POST" else 1.0 for name, _ in ROUTES])[0]
    route = f"{method} {path}"
    data = _request(rng, method, path, _body(rng, path, model) if method == "POST" else b"", headers)
    if rng.random() < 0.2:
        route, data = "damaged HTTP", mutated(data, rng)
    leaves = rng.random() < 0.2
    try:
        async with asyncio.timeout(LIMIT):
            status = await _exchange(address, data, rng.uniform(0.0, 0.2) if leaves else None)
    except TimeoutError:
        status = LEFT
    return route, status, data


async def _exchange(address: str, data: bytes, leave_after: float | None) -> int | str:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(data)
        await writer.drain()
        if leave_after is not None:
            await asyncio.sleep(leave_after)
            return LEFT
        answer = b""
        while len(answer) < READS and (more := await reader.read(65_536)):
            answer += more
        found = re.match(rb"(?:HTTP/1\.1 100 [^\r]*\r\n\r\n)?HTTP/1\.[01] (\d{3})", answer)
        return NOTHING if found is None else int(found[1])
    except ConnectionError:
        return NOTHING
    finally:
        writer.close()


def _request(rng: random.Random, method: str, path: str, body: bytes, headers: Sequence[str]) -> bytes:
    if rng.random() < 0.1:
        method = rng.choice(METHODS)
    if rng.random() < 0.05:
        path = rng.choice([path + "/x", "/", "//", "/v1/../v1/models", "/%00", "/" + "a" * 9000, path + "?a=%ff"])
    length = len(body) if rng.random() < 0.95 else rng.choice([0, 5, 10**9, -1])
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {length}", *headers]
    lines.append(f"Content-Type: {rng.choice(['application/json', 'application/json', 'text/plain', ''])}")
    if rng.random() < 0.05:
        lines.append(rng.choice(["Transfer-Encoding: chunked", "X: " + "y" * 70_000, "Expect: 100-continue", ": x"]))
    return "\r\n".join([*lines, "", ""]).encode() + body


def _body(rng: random.Random, path: str, model: str) -> bytes:
    form = rng.random()
    if form < 0.1:
        return noise(rng)
    if form < 0.13:
        return b"[" * rng.choice([10, 5_000, 200_000])
    body = _sensible(rng, path, model)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        body[rng.choice([*body, *FIELDS])] = _value(rng)
    data = json.dumps(body).encode()
    return mutated(data, rng) if rng.random() < 0.2 else data


FIELDS = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "logit_bias", "stream",
    "stream_options", "presence_penalty", "frequency_penalty", "user", "echo", "best_of", "suffix", "tools", "response_format", "top_k",
    "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "prompt_logprobs", "model", "messages", "prompt", "nonsense",
)  # fmt: skip


def _sensible(rng: random.Random, path: str, model: str) -> dict[str, Json]:
    body: dict[str, Json] = {"model": model, "max_tokens": rng.randint(1, 6), "stream": rng.random() < 0.5}
    if path.endswith("chat/completions"):
        content: Json = rng.choice(SAYINGS)
        if rng.random() < 0.4:
            parts = [_part(rng) for _ in range(rng.choice([1, 1, 2, 4]))]
            content = [*parts, {"type": "text", "text": content}] if rng.random() < 0.8 else parts
        body["messages"] = [{"role": "user", "content": content}]
    else:
        body["prompt"] = rng.choice([rng.choice(SAYINGS), [1, 2, 3], ["a", "b"], [[1, 2], [3]]])
    return body


def _part(rng: random.Random) -> Json:
    """A part of a message with a picture or something like one: OpenAI's form, and what is made of it."""
    data = base64.b64encode(file(rng)).decode()
    url: Json = f"data:{rng.choice(['image/png', 'image/png', 'image/jpeg', 'audio/wav', '', 'text/plain;charset=x'])};base64,{data}"
    form = rng.random()
    if form < 0.1:
        url = url[: rng.randint(0, len(url))] + rng.choice(["", "=", "%00", "\n", "!"])
    elif form < 0.25:
        url = rng.choice([*REMOTE, None, 7, [url], {"url": url}])
    if form > 0.95:
        return {"type": "input_audio", "input_audio": {"data": data, "format": rng.choice(["wav", "mp3", "png", None])}}
    part: Json = {"type": "image_url", "image_url": url if form > 0.9 else {"url": url}}
    if rng.random() < 0.1:
        part[rng.choice(["type", "image_url", "extra", "text"])] = _value(rng)
    return part


REMOTE = ("http://127.0.0.1:1/a.png", "https://[::1]/", "http://user:word@host/", "file:///etc/passwd", "ftp://x", "data:", "data:,x", "http://\\evil", "//x/y")  # fmt: skip
"""URLs that must never be fetched."""


def _value(rng: random.Random, depth: int = 3) -> Json:
    simple: list[Json] = [
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        20,
        2**31,
        2**63,
        -(2**70),
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        *TEXTS,
    ]
    if depth and rng.random() < 0.3:
        items = [_value(rng, depth - 1) for _ in range(rng.choice([0, 1, 3]))]
        return (
            items
            if rng.random() < 0.5
            else {rng.choice([*TEXTS, "role", "content", "1", "type"]): item for item in items}
        )
    return rng.choice(simple)

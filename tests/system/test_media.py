"""Questions about pictures: the same answers however the stages are placed, through losses of every stage, and nothing is left behind."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.system.deployment import Deployment, deployed
from triptych.runtime.client import Client
from triptych.runtime.core.errors import InvalidRequestError, NotFoundError

ROWS = 16  # embeddings of a picture
FLAGS = ("--model=dummy:toy-vlm", "--max-model-len=256", "--max-num-batched-tokens=64", "--max-num-seqs=4")
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "timeout": 200}


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def asked(*parts: int | str) -> list[dict[str, Any]]:
    """A user's message: text, and the pictures of these seeds."""
    shown = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": png(part)}
        for part in parts
    ]
    return [{"role": "user", "content": shown}]


QUESTIONS = [asked("Hi"), asked(1, "What?"), asked(2, "What?"), asked(1, "What?"), asked(1, "or", 2), asked(2, 2, 3)]


def answers(client: Client, salt: str = "") -> list[list[int]]:
    """To all questions at once."""
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        results = threads.map(
            lambda q: client.complete(messages=q, max_tokens=12, cache_salt=salt, **GREEDY), QUESTIONS
        )
        return [result.samples[0].token_ids for result in results]


def lose(server: Deployment, client: Client, name: str, question: list[dict[str, Any]]) -> tuple[list[int], int]:
    """The answer to a question in the middle of which a process is killed, and the attempts that it took."""
    old = server.processes[name]
    with client.generate(messages=question, max_tokens=150, cache_salt=f"lose {name}", **GREEDY) as stream:
        next(stream)
        server.kill(name)
        for _ in stream:
            pass
    server.wait_restarted(name, old)
    assert stream.result.timings is not None
    return stream.result.samples[0].token_ids, stream.result.timings.attempts


@pytest.mark.slow
@pytest.mark.limit(900)
def test_answers_about_pictures_are_the_same_on_one_instance_and_on_three_that_are_lost_one_after_another() -> None:
    with deployed(*FLAGS, "--topology=EPD") as server, Client(server.address) as client:
        expected = answers(client)
        assert expected[1] == expected[3] != expected[2]
        long = client.complete(messages=asked(7, "Go on"), max_tokens=150, **GREEDY).samples[0].token_ids
        server.wait_idle()
    with deployed(*FLAGS, "--topology=1E1P1D") as server, Client(server.address) as client:
        assert answers(client) == expected
        again = client.complete(messages=asked(1, "What?"), max_tokens=2, **GREEDY)
        assert again.usage is not None and again.timings is not None
        assert (again.usage.media_tokens, again.timings.media_items, again.timings.encode_tasks) == (ROWS, 1, 0)

        with pytest.raises(InvalidRequestError, match=r"^chat.messages\[0\].parts\[0\]: this image/png cannot"):
            client.complete(messages=[{"role": "user", "content": [{"type": "image", "image": png(1)[:200]}]}])
        upload = client.upload_media(png(1))
        part = {"type": "image", "image": upload}
        used = client.complete(messages=[{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}], max_tokens=12, **GREEDY)  # fmt: skip
        assert used.samples[0].token_ids == expected[1]
        client.delete_media(upload)
        with pytest.raises(NotFoundError):
            client.delete_media(upload)
        uri = "data:image/png;base64," + base64.b64encode(png(2)).decode()
        same = client.complete(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "What?"}]}], max_tokens=12, **GREEDY)  # fmt: skip
        assert same.samples[0].token_ids == expected[2]

        assert lose(server, client, "decode-0", asked(7, "Go on")) == (long, 2)
        lose_encoder, attempts = lose(server, client, "encode-0", asked(7, "Go on"))
        assert (lose_encoder, attempts) == (long, 1), "what is being decoded needs no encoder"
        assert answers(client, salt="after the encoder's death") == expected
        assert lose(server, client, "prefill-0", asked(7, "Go on"))[0] == long
        assert answers(client, salt="after prefill's death") == expected
        server.wait_idle()

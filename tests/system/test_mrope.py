"""Pictures and a video for a model of three positions a token (the toy in the form of Qwen2.5-VL): what a client gets is the plain forward pass of the same weights.

They are of several sizes, cut by chunks and found in caches, wherever encode, prefill and decode are.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests.models.multimodal.forward import encode, logits
from tests.runtime.media import files
from tests.system.toy_media import assert_nothing_held, cluster_of, encoded, picture
from triptych.models.multimodal.mrope import MediaGrid, media_grid, mrope_positions
from triptych.models.multimodal.plans import plan_image
from triptych.models.multimodal.presets import TOY_IMAGE_ID, VLM_PRESETS
from triptych.models.multimodal.processing import process_frames, process_image
from triptych.models.multimodal.prompt import MarkerIds, expand
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import load_decoder
from triptych.models.weights.vision import dummy_encoder
from triptych.runtime.client import Client, Result
from triptych.sharding.mesh import make_mesh

pytestmark = pytest.mark.limit(600)
NAME = "toy-qwen-vl"
CONFIG = VLM_PRESETS[NAME]
SLOTS = 128
# 4 x 6, 2 x 3 and 6 x 4 embeddings: more than a chunk, and one that fits a chunk.
WIDE, SMALL, TALL = picture(1, 48, 32), picture(2, 24, 16), picture(3, 40, 60)
# A second of it, ten frames: four are seen, in two steps of 2 x 3 half a second apart.
FRAMES = files.video_frames(10, 48, 32)
VIDEO = files.video_file(FRAMES)
VIDEO_GRID, VIDEO_FRAMES = MediaGrid(2, 2, 3, CONFIG.tokens_per_second * 0.5), (0, 2, 5, 7)  # type: ignore[operator]
# (prompt, pictures and videos), in the order in which they are asked.
QUESTIONS: list[tuple[str, list[bytes]]] = [
    ("<|pad|>What is this?", [WIDE]),
    ("<|pad|>What else?", [WIDE]),  # begins inside the picture where KV is cached
    ("First <|pad|> then <|pad|>: and <|pad|>?", [SMALL, TALL, WIDE]),
    ("<|pad|> then <|pad|>: what happens?", [SMALL, VIDEO]),
    ("no picture", []),
]
SETTINGS: dict[str, Any] = {"chunk_tokens": 16, "page_size": 8, "encode_patches": SLOTS}
ANSWER: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "timeout": 120}


@cache
def weights():  # type: ignore[no-untyped-def]
    mesh = make_mesh(jax.devices()[:1], 1)
    return load_decoder(CONFIG.text, DummySource(CONFIG.text), mesh, "float32"), dummy_encoder(CONFIG.vision, mesh, "float32")  # fmt: skip


@cache
def seen(medium: bytes) -> tuple[MediaGrid, np.ndarray]:
    """The grid and the embeddings of a picture or the video."""
    if medium == VIDEO:
        _, decoded = files.sequential(VIDEO)
        assert CONFIG.video is not None
        plan = plan_image(CONFIG.video.frame, CONFIG.vision, 48, 32)
        pieces, grid = process_frames([decoded[at] for at in VIDEO_FRAMES], plan, CONFIG.vision), VIDEO_GRID
    else:
        pixels = np.asarray(Image.open(BytesIO(medium)))
        plan = CONFIG.plan(pixels.shape[1], pixels.shape[0])
        pieces, grid = process_image(pixels, plan, CONFIG.vision), media_grid(CONFIG, plan)
    return grid, np.concatenate(encode(weights()[1], pieces, SLOTS))


def check(question: tuple[str, list[bytes]], result: Result) -> None:
    """Every drawn token is the most likely one after those before it."""
    text, media = question
    ids = [TOY_IMAGE_ID if part is None else ord(part) for part in split(text)]
    grids, rows = zip(*map(seen, media), strict=True)
    outputs = result.samples[0].token_ids
    prompt = expand(ids, list(map(len, rows)), MarkerIds((TOY_IMAGE_ID,)))
    tokens = np.asarray([*prompt.tokens, *outputs[:-1]])
    positions = mrope_positions(len(tokens), prompt.spans, grids).positions
    found = logits(weights()[0], tokens, prompt.spans, rows, positions)
    assert found[len(prompt.tokens) - 1 :].argmax(axis=1).tolist() == outputs


def split(text: str) -> list[str | None]:
    """Characters of a prompt; None for a placeholder."""
    first, *others = text.split("<|pad|>")
    return [*first, *(part for other in others for part in (None, *other))]


def served(topology: str, transport: str, tp: tuple[int, int, int], **changes: Any) -> list[Result]:
    """Every question twice, one after another."""
    with (
        cluster_of(topology, transport, tp, f"dummy:{NAME}", **(SETTINGS | changes)) as cluster,
        Client(cluster.address) as client,
    ):
        results = [client.complete(text, media=media, **ANSWER) for text, media in QUESTIONS * 2]
        assert sum(encoded(cluster).values()) == 5, "three pictures and two steps of a video, each once"
        assert_nothing_held(cluster)
        assert all(snapshot.counters["compiled_after_ready"] == 0 for snapshot in cluster.snapshots())
    return results


@pytest.mark.parametrize(
    "row",
    [
        ("1E1P1D", "grpc", (1, 2, 1)),
        pytest.param(("EPD", "local", (2, 2, 2)), marks=pytest.mark.slow),
        pytest.param(("2E1P1D", "device", (1, 1, 2)), marks=pytest.mark.slow),
        pytest.param(("E-PD", "local", (1, 1, 1)), marks=pytest.mark.slow),
    ],
    ids=lambda row: f"{row[0]}-{row[1]}",
)
def test_answers_are_those_of_the_plain_forward(row: tuple[str, str, tuple[int, int, int]]) -> None:
    results = served(*row)
    for cold, warm in zip(results[: len(QUESTIONS)], results[len(QUESTIONS) :], strict=True):
        assert cold.samples[0].token_ids == warm.samples[0].token_ids
    for number in (1, 2, 3):  # one forward pass more is one compilation more
        check(QUESTIONS[number], results[number])
    cached = [result.usage.cached_tokens for result in results if result.usage is not None]
    assert cached[0] == 0 and 0 < cached[1] <= 24, (
        "the second question begins inside the picture of the first, or behind it"
    )
    assert all(cached[len(QUESTIONS) :][:3])

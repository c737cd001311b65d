"""A real worker with instances of the toy vision-language model, and a scheduler and gateway that the test plays."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any, ClassVar

import grpc
import jax
import jax.numpy as jnp
import numpy as np

from tests.runtime.engine.oracle import LONGEST, forward
from tests.runtime.worker.bench import PATIENCE, Bench, D, P
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.vision.packing import Grid, Piece, pack
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import load_decoder
from triptych.models.weights.vision import dummy_encoder
from triptych.proto.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import EncodeStaged, FeedMedia, MediaWanted, StartEncode
from triptych.runtime.worker.config import InstancePlan
from triptych.sharding.mesh import make_mesh

E = frozenset({Role.ENCODE})
TOY = VLM_PRESETS["toy-vlm"]
SLOTS, TOKENS = 17, 16


def picture(seed: int) -> np.ndarray:
    """[patches, patch_dim] of a 16 x 16 image."""
    return np.random.default_rng(seed).integers(0, 256, (TOKENS, TOY.vision.patch_dim), np.uint8)


def item(seed: int, offset: int) -> MediaItem:
    return MediaItem(f"picture{seed}", MediaKind.IMAGE, offset, TOKENS, SLOTS, (1, 1, TOKENS))


@cache
def _loaded() -> tuple[Any, Any]:
    mesh = make_mesh(jax.devices()[:1], 1)
    return load_decoder(TOY.text, DummySource(TOY.text), mesh, "float32"), dummy_encoder(TOY.vision, mesh, "float32")


@cache
def embedded(seed: int) -> np.ndarray:
    """[TOKENS, hidden]: one picture's embeddings, by the encoder alone."""
    encoder = _loaded()[1]
    packed, _ = pack([Piece(picture(seed), Grid(4, 4))], TOY.vision, SLOTS)
    return np.asarray(jax.jit(lambda params, packed: encoder.merge(params)(packed))(encoder.params, packed))[:TOKENS]


@cache
def _next() -> Any:
    decoder = _loaded()[0]

    def run(params: Any, tokens: jax.Array, rows: jax.Array, is_media: jax.Array) -> jax.Array:
        module = decoder.merge(params)
        x = jnp.where(is_media[:, None], rows, module.embed(tokens))
        return forward(module, x, jnp.arange(LONGEST))

    return jax.jit(run)


def expected(request: Request, seeds: list[int], count: int) -> list[int]:
    """Greedy tokens of a dense forward pass, without pages, chunks or stages."""
    tokens = list(request.prompt)
    for _ in range(count):
        padded, rows, is_media = (
            np.zeros(LONGEST, np.int32),
            np.zeros((LONGEST, 64), np.float32),
            np.zeros(LONGEST, bool),
        )
        padded[: len(tokens)] = tokens
        for medium, seed in zip(request.media, seeds, strict=True):
            rows[medium.offset : medium.end], is_media[medium.offset : medium.end] = embedded(seed), True
        logits = _next()(_loaded()[0].params, padded, rows, is_media)
        tokens.append(int(np.asarray(logits)[len(tokens) - 1].argmax()))
    return tokens[len(request.prompt) :]


class MediaBench(Bench):
    """Instances "e", "p" on two devices, "d", and "epd" with all three roles."""

    MODEL = "dummy:toy-vlm"
    PLANS = (
        InstancePlan("e", E),
        InstancePlan("p", P, tp=2),
        InstancePlan("d", D),
        InstancePlan("epd", E | P | D),
    )
    OPTIONS: ClassVar[dict[str, Any]] = {
        "media_pages": 9,
        "encode_patches": 40,
        "max_model_len": LONGEST,
        "page_size": 8,
    }

    # ---- what a scheduler and a gateway do

    def wanted(self, request: Request, times: int = 1) -> MediaWanted:
        """The `times`-th report of what the prompt needs."""
        return self.reports(request, MediaWanted, times)[-1]

    def feed(self, request: Request, wanting: str, items: tuple[int, ...], encode: str = "e") -> EncodeStaged:
        """Has items encoded and tells the prompt's instance where they are."""
        before = len(self.heard(request, EncodeStaged))
        self.send(encode, StartEncode(request, items, 20.0, 20.0))
        staged = self.reports(request, EncodeStaged, before + 1)[-1]
        self.send(wanting, FeedMedia(request.id, staged.handle, items, request.attempt))
        return staged

    def bring(self, name: str, seed: int, ref: InstanceRef | None = None) -> tuple[bool, bool]:
        """Worker.PutMedia: (wanted, stored)."""
        owner, patches = ref or self.ref(name), picture(seed)
        header = worker_pb2.MediaHeader(
            owner=common_pb2.InstanceRef(id=owner.id, epoch=owner.epoch),
            hash=f"picture{seed}",
            shape=patches.shape,
            grid=(1, 4, 4),
            checksum=zlib.crc32(patches.tobytes()),
        )

        async def put() -> tuple[bool, bool]:
            async with grpc.aio.insecure_channel(self.process.address) as channel:
                stub: Any = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]
                call = stub.PutMedia(timeout=PATIENCE)
                await call.write(worker_pb2.PutMediaRequest(header=header))
                reply = await call.read()
                if not reply.wanted:
                    return False, False
                await call.write(worker_pb2.PutMediaRequest(data=patches.tobytes()))
                return True, (await call.read()).stored

        return self.run(put())

    # ---- what was reported

    def heard(self, request: Request, kind: type) -> list[Any]:
        """Every report of a kind on this attempt so far."""
        return [report for report in self.all_reports(request) if isinstance(report, kind)]

    def reports(self, request: Request, kind: type, count: int) -> list[Any]:
        """Waits for so many."""
        return self.wait_for(lambda: len(found := self.heard(request, kind)) >= count and found)

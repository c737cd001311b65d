"""Whisper in an engine for tests: the toy preset, its media pool and encoder, and what the dense reference says of a window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from tests.runtime.engine.driver import PAGE, Driver, Seq, toy_config
from triptych.models.speech.load import load_decoder, load_encoder, load_listener
from triptych.models.speech.presets import SPEECH_PRESETS, TOY_SPEECH_SETTINGS, WhisperDummySource, toy_speech_tokenizer
from triptych.models.speech.tokens import SpeechTokens
from triptych.models.speech.transcribe import Transcriber
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.encode_engine import EncodeEngine
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.media_pool import CrossPool
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.shelf import MediaShelf, Pixels
from triptych.runtime.engine.speech_encoder import SpeechMediaEncoder
from triptych.runtime.instance.plan import Attended, Encode, Row
from triptych.sharding.mesh import make_mesh

CONFIG = SPEECH_PRESETS["toy-whisper"]
SOURCE = WhisperDummySource(CONFIG)
TOKENIZER = toy_speech_tokenizer()
TOKENS = SpeechTokens.from_vocabulary(TOKENIZER, CONFIG, TOY_SPEECH_SETTINGS)
PROMPT = TOKENS.prompt("en")
POSITIONS = CONFIG.audio_positions
WINDOW_PAGES = -(-POSITIONS // PAGE)
MEDIA_PAGES = 4 * WINDOW_PAGES + 1
# Decode-only, mixed and prefill-only programs.
SHAPES = Buckets((ExtendShape(4, 0, 16), ExtendShape(4, 16, 16), ExtendShape(0, 6, 16)), draws=(4,))
ALL = frozenset(Role)


def wave(seed: int, seconds: float = 1.0) -> np.ndarray:
    """A sound of its own for each seed: an eighth of a second a tone, of random pitch and loudness, float32 at 16 kHz."""
    random, time = np.random.default_rng(seed), np.arange(2000) / 16_000
    tones = [
        loud * np.sin(2 * np.pi * pitch * time)
        for pitch, loud in zip(random.uniform(80, 6000, 8), random.uniform(0, 1, 8), strict=True)
    ]
    return np.concatenate(tones).astype(np.float32)[: int(seconds * 16_000)]


@cache
def transcriber() -> Transcriber:
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(CONFIG, SOURCE, mesh, "float32")
    return Transcriber(encoder, load_decoder(CONFIG, SOURCE, mesh, "float32"), TOKENS, TOKENIZER)


@cache
def said(seed: int, seconds: float = 1.0, language: str = "en") -> list[int]:
    """The reference's tokens of a wave, without prompt and end."""
    return transcriber().window(wave(seed, seconds), language)


def stage(tp: int, encodes: bool) -> MediaStage:
    mesh = make_mesh(jax.devices()[:tp], tp)
    listener = load_listener(CONFIG, SOURCE, mesh, "float32")
    encoder = SpeechMediaEncoder(listener)
    pool = CrossPool(listener.rules, encoder.group("float32"), listener.head_layout, PAGE, MEDIA_PAGES)
    return MediaStage(pool, encoder, MediaShelf(1 << 20), 2 * POSITIONS) if encodes else MediaStage(pool)


def speech_engine(tp: int = 1, roles: frozenset[Role] = ALL, **changes: Any) -> Engine:
    encodes = Role.ENCODE in roles
    loaded = load_decoder(CONFIG, SOURCE, make_mesh(jax.devices()[:tp], tp), "float32")
    config = toy_config(
        buckets=SHAPES,
        roles=roles,
        media_pages=MEDIA_PAGES,
        encode_patches=2 * POSITIONS if encodes else 0,
        attended=POSITIONS,
        suppressed=TOKENS.suppressed,
        **changes,
    )
    engine = Engine(config, loaded, loaded.rules.mesh, stage(tp, encodes))
    engine.compile()
    return engine


def encode_engine(tp: int = 1) -> EncodeEngine:
    config = toy_config(
        num_pages=1,
        buckets=SHAPES,
        roles=frozenset({Role.ENCODE}),
        media_pages=MEDIA_PAGES,
        encode_patches=2 * POSITIONS,
        attended=POSITIONS,
    )
    engine = EncodeEngine(config, make_mesh(jax.devices()[:tp], tp), stage(tp, True))
    engine.compile()
    return engine


def bring(media: MediaStage, name: str, samples: np.ndarray) -> None:
    """Put a window's samples on the shelf."""
    assert media.shelf is not None
    media.shelf.reserve(samples.nbytes)
    media.shelf.put(name, Pixels(samples, (samples.size, 1, 1)))


def pages(number: int) -> tuple[int, ...]:
    """Where window `number` lies: every fourth page, so that windows interleave."""
    return tuple(1 + number + 4 * at for at in range(WINDOW_PAGES))[::-1]


def encode(name: str, number: int) -> Encode:
    return Encode(name, POSITIONS, POSITIONS, pages(number))


@dataclass
class Hearing:
    """A sequence and the window that it hears."""

    seq: Seq
    number: int

    def heard(self, row: Row) -> Row:
        return row._replace(attended=(Attended(POSITIONS, pages(self.number)),))


def transcribe(driver: Driver, hearings: list[Hearing], chunks: tuple[int, ...] = (4,)) -> list[list[int]]:
    """Prefill each in chunks, decode all together until all have ended; their outputs, without the end and what follows it."""
    for hearing in hearings:
        seq = hearing.seq
        seat = seq.seat(forbidden_first=TOKENS.suppressed_first, first=len(PROMPT))
        for at, count in enumerate(chunks):
            last = at == len(chunks) - 1
            drawn = driver.tokens(hearing.heard(seq.row(count, draws=last)), seats=(seat,) if last else ())
        seq.outputs.append(drawn[0][0])
    for _ in range(transcriber().max_tokens - 1):
        if all(TOKENS.end in hearing.seq.outputs for hearing in hearings):
            break
        rows = [hearing.heard(hearing.seq.carried_row()) for hearing in hearings]
        for hearing, (token,) in zip(hearings, driver.tokens(*rows), strict=True):
            hearing.seq.outputs.append(token)
    return [ended(hearing.seq.outputs) for hearing in hearings]


def ended(outputs: list[int]) -> list[int]:
    """Up to the end, without it, and at most what the reference says."""
    at = outputs.index(TOKENS.end) if TOKENS.end in outputs else len(outputs)
    return outputs[: min(at, transcriber().max_tokens)]

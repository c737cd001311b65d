"""Whisper in an engine: what it says of a window is what the dense reference says, however its rows are packed and wherever it is split."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.engine import speech_rig as rig
from tests.runtime.engine.driver import PAGE, Driver, sequence
from tests.runtime.engine.speech_rig import PROMPT, TOKENS, Hearing
from triptych.models.errors import MediaShapeError
from triptych.models.speech.decoder import cross_kv
from triptych.models.speech.transcribe import encode
from triptych.runtime.core.errors import ConfigError, EngineError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.speech_encoder import SpeechMediaEncoder
from triptych.runtime.instance.plan import Attended

pytestmark = pytest.mark.limit(300)


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Engine:
    return rig.speech_engine(request.param)


def media(engine: Engine) -> MediaStage:
    assert engine.media is not None
    return engine.media


def hear(engine: Engine, driver: Driver, number: int, seconds: float = 1.0) -> None:
    """Encode wave `number` into its pages."""
    name = f"{seconds} s of wave {number}"
    rig.bring(media(engine), name, rig.wave(number, seconds))
    driver.run(encodes=(rig.encode(name, number),))


def hearing(number: int) -> Hearing:
    return Hearing(sequence(number, list(PROMPT)), number)


def test_what_is_encoded_is_what_cross_attention_of_each_layer_reads(engine: Engine) -> None:
    driver, reference = Driver(engine), rig.transcriber()
    media(engine).rebuild()
    for number in (0, 2):
        rig.bring(media(engine), f"wave {number}", rig.wave(number))
    driver.run(encodes=(rig.encode("wave 0", 0), rig.encode("wave 2", 2)))
    untouched = sorted(set(range(rig.MEDIA_PAGES)) - {*rig.pages(0), *rig.pages(2)})
    for number in (0, 2):
        states = encode(reference.encoder.merge(reference.encoder.params), jnp.asarray(rig.wave(number)))
        entries = cross_kv(reference.decoder.merge(reference.decoder.params), states)
        for pools, expected in zip(media(engine).pools, entries, strict=True):
            for pool, rows in zip(pools, expected, strict=True):
                stored = np.asarray(pool)[list(rig.pages(number))].reshape(-1, *rows.shape[1:])[: rig.POSITIONS]
                np.testing.assert_allclose(stored, rows, atol=1e-4)
                assert not np.asarray(pool)[untouched].any()


@pytest.mark.parametrize("chunks", [(4,), (1, 1, 2)])
def test_a_transcript_is_the_references_however_its_prompt_is_cut(engine: Engine, chunks: tuple[int, ...]) -> None:
    driver = Driver(engine)
    hear(engine, driver, 1)
    assert rig.transcribe(driver, [hearing(1)], chunks) == [rig.said(1)]


def test_rows_of_one_step_hear_their_own_windows(engine: Engine) -> None:
    driver = Driver(engine)
    for number, seconds in ((0, 1.0), (1, 0.4), (2, 1.0), (3, 0.05)):
        hear(engine, driver, number, seconds)
    expected = [rig.said(number, seconds) for number, seconds in ((0, 1.0), (1, 0.4), (2, 1.0), (3, 0.05))]
    assert len({tuple(tokens) for tokens in expected}) == 4, "the windows make no difference, so the test shows nothing"
    assert rig.transcribe(driver, [hearing(number) for number in range(4)]) == expected


def test_encoding_and_prefill_with_what_was_just_encoded_share_a_step(engine: Engine) -> None:
    driver, heard = Driver(engine), hearing(2)
    media(engine).rebuild()
    rig.bring(media(engine), "wave 2", rig.wave(2))
    seat = heard.seq.seat(forbidden_first=TOKENS.suppressed_first, first=len(PROMPT))
    drawn = driver.tokens(heard.heard(heard.seq.row(4)), seats=(seat,), encodes=(rig.encode("wave 2", 2),))
    assert drawn == [rig.said(2)[:1]]


def test_what_is_suppressed_is_never_drawn_and_what_a_transcript_cannot_begin_with_not_first(engine: Engine) -> None:
    """At a high temperature, so that every token that may be drawn is drawn at times; and a bias makes the forbidden ones likely."""
    driver, drawn, first = Driver(engine), set[int](), set[int]()
    hear(engine, driver, 0)
    for seed in range(12):
        heard = hearing(0)
        likely = tuple((token, 8.0) for token in TOKENS.suppressed_first)
        heard.seq.params = replace(heard.seq.params, temperature=5.0, seed=seed, logit_bias=likely)
        seat = heard.seq.seat(forbidden_first=TOKENS.suppressed_first, first=len(PROMPT))
        ((token,),) = driver.tokens(heard.heard(heard.seq.row(4)), seats=(seat,))
        first.add(token)
        for _ in range(4):
            ((token,),) = driver.tokens(heard.heard(heard.seq.carried_row()))
            drawn.add(token)
    assert not first & set(TOKENS.suppressed_first)
    assert drawn & set(TOKENS.suppressed_first), "later they may be drawn"
    assert not (first | drawn) & set(TOKENS.suppressed)


@pytest.mark.parametrize(
    ("attended", "words"),
    [
        ((Attended(rig.POSITIONS, (1, 2)),), "50 entries in 2 media pages"),
        ((Attended(rig.POSITIONS + 1, rig.pages(0)),), "at most 50"),
        ((Attended(0, rig.pages(0)),), "attends to 0 entries"),
        ((Attended(rig.POSITIONS, (0, *rig.pages(0)[1:])),), "media pages"),
        ((Attended(rig.POSITIONS, (rig.MEDIA_PAGES, *rig.pages(0)[1:])),), "the pool has 53"),
        ((Attended(rig.POSITIONS, rig.pages(0)),) * 2, "attends to 2 items"),
    ],
)
def test_what_cannot_be_attended_to_breaks_the_engine(
    engine: Engine, attended: tuple[Attended, ...], words: str
) -> None:
    driver, seq = Driver(engine), sequence(0, list(PROMPT))
    with pytest.raises(EngineError, match=words):
        driver.run(seq.row(4, attended=attended), seats=(seq.seat(),))
    engine.rebuild()


def test_an_encode_instance_gives_entries_and_a_decode_instance_reads_them() -> None:
    """As E and D: the encoder alone, on one device, and the decoder alone, on two, which gets the pages as a pull would bring them."""
    encoder, decodes = rig.encode_engine(), rig.speech_engine(2, frozenset({Role.DECODE}))
    rig.bring(encoder.media, "wave 3", rig.wave(3))
    encoder.collect(encoder.dispatch(Driver.plan(Driver(encoder), encodes=(rig.encode("wave 3", 3),))))  # type: ignore[arg-type]
    stage = media(decodes)
    stage.pools = jax.tree.map(
        lambda here, there: jax.device_put(np.asarray(there), here.sharding), stage.pools, encoder.media.pools
    )
    assert rig.transcribe(Driver(decodes), [hearing(3)]) == [rig.said(3)]
    with pytest.raises(EngineError, match="has no encoder"):
        Driver(decodes).run(encodes=(rig.encode("wave 3", 3),))


def test_the_encoder_takes_windows_and_nothing_else() -> None:
    encoder = rig.stage(1, True).encoder
    assert isinstance(encoder, SpeechMediaEncoder)
    assert encoder.patch_shape((1, 1, 1)) == (1,) and encoder.patch_shape((16_000, 1, 1)) == (16_000,)
    for grid in ((0, 1, 1), (16_001, 1, 1), (-1, 1, 1), (10, 2, 1), (10, 1, 0)):
        with pytest.raises(MediaShapeError):
            encoder.patch_shape(grid)
    assert encoder.sizes(3 * rig.POSITIONS + 1) == (50, 100, 150)
    with pytest.raises(MediaShapeError, match="less than a window"):
        encoder.sizes(rig.POSITIONS - 1)


def test_the_listener_reads_the_encoder_and_no_more_of_the_decoder_than_cross_attention_needs() -> None:
    read: set[str] = set()

    class Watched(type(rig.SOURCE)):
        def read(self, name, slices):
            read.add(name)
            return super().read(name, slices)

    rig.load_listener(rig.CONFIG, Watched(rig.CONFIG), rig.transcriber().encoder.rules.mesh, "float32")
    of_decoder = {name for name in read if name.startswith("model.decoder.")}
    assert of_decoder and all("encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name for name in of_decoder)
    assert {name for name in SOURCE_NAMES if name.startswith("model.encoder.")} <= read


SOURCE_NAMES = frozenset(rig.SOURCE.names())


def test_a_decoder_with_cross_attention_needs_a_pool() -> None:
    with pytest.raises(ConfigError, match="raise media_pages"):
        rig.toy_config(attended=rig.POSITIONS, page_size=PAGE)

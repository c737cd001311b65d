"""Media in an engine: encode programs write what the encoder gives, and prompts with embeddings are what a plain forward pass computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.engine import media_rig as rig
from tests.runtime.engine import oracle
from tests.runtime.engine.driver import PAGE, Driver, sequence, toy_config
from tests.runtime.engine.toy_encoder import HIDDEN, embeddings, pixels
from triptych.models.kv import kv_groups
from triptych.runtime.core.errors import ConfigError, EngineError
from triptych.runtime.core.instance import Role
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.media_pool import EmbeddingPool, media_group
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.programs import Programs
from triptych.runtime.instance.plan import Embedded, Encode

pytestmark = pytest.mark.limit(300)

CAT, DOG = pixels(1, 3, 3), pixels(2, 1, 5)
# Text, nine embeddings, text, five, one more token.
PROMPT = [11, 200, 3, *[259] * 9, 77, 5, *[259] * 5, 42]
ITEMS = {3: (9, (7, 2, 5)), 14: (5, (9, 4))}
MEDIA = {3: embeddings(CAT), 14: embeddings(DOG)}


@pytest.fixture(scope="module", params=[(1, 2), (2, 1)], ids=["tp1", "tp2-layer-by-layer"])
def engine(request: pytest.FixtureRequest) -> Engine:
    tp, layers = request.param
    return rig.media_engine(tp, layers=layers)


@pytest.fixture
def driver(engine: Engine) -> Driver:
    return Driver(engine)


def stage_of(engine: Engine) -> MediaStage:
    assert engine.media is not None
    return engine.media


def test_items_of_one_step_are_written_to_their_pages_and_nowhere_else(engine: Engine, driver: Driver) -> None:
    stage = stage_of(engine)
    stage.rebuild()
    rig.bring(stage, "cat", CAT)
    rig.bring(stage, "dog", DOG)
    driver.run(encodes=(rig.encode("cat", CAT, (7, 2, 5)), rig.encode("dog", DOG, (9, 4))))
    expected = np.zeros((rig.MEDIA_PAGES, PAGE, HIDDEN), np.float32)
    expected[7], expected[2], expected[5, 0] = MEDIA[3][:4], MEDIA[3][4:8], MEDIA[3][8]
    expected[9], expected[4, 0] = MEDIA[14][:4], MEDIA[14][4]
    np.testing.assert_allclose(rig.stored(stage), expected, atol=1e-5)


@pytest.mark.parametrize("chunks", [(20,), (4, 16), (1, 1, 1, 1, 8, 1, 6, 1), (12, 8), (19, 1), (5,) * 4])
def test_a_prompt_with_media_is_the_plain_forward_wherever_it_is_cut(
    engine: Engine, driver: Driver, chunks: tuple[int, ...]
) -> None:
    stage = stage_of(engine)
    rig.fill(stage, (7, 2, 5), MEDIA[3])
    rig.fill(stage, (9, 4), MEDIA[14])
    seq, start = sequence(0, list(PROMPT)), 0
    assert sum(chunks) == len(PROMPT)
    for count in chunks:
        for part in (count,) if count <= 16 else (16, count - 16):
            last = start + part == len(PROMPT)
            result = driver.tokens(
                seq.row(part, draws=last, embedded=rig.runs(start, part, ITEMS)), seats=(seq.seat(),)
            )
            start += part
    seq.outputs.append(result[0][0])
    for _ in range(4):
        ((token,),) = driver.tokens(seq.carried_row())
        seq.outputs.append(token)
    assert seq.outputs == rig.greedy(PROMPT, MEDIA, 5)
    assert seq.outputs != oracle.greedy(PROMPT, 5), "the media make no difference, so the test shows nothing"


def test_encoding_prefill_with_what_was_just_encoded_and_decoding_share_a_step(engine: Engine, driver: Driver) -> None:
    stage = stage_of(engine)
    stage.rebuild()
    rig.bring(stage, "dog", DOG)
    text, prompt = sequence(0, [9, 8, 7]), [50, *[259] * 5, 60]
    driver.generate([text], 1)
    seen = sequence(1, list(prompt))
    items = {1: (5, (3, 8))}
    result = driver.tokens(
        text.carried_row(),
        seen.row(7, embedded=rig.runs(0, 7, items)),
        seats=(seen.seat(),),
        encodes=(rig.encode("dog", DOG, (3, 8)),),
    )
    assert result == [oracle.greedy([9, 8, 7], 2)[1:], rig.greedy(prompt, {1: MEDIA[14]}, 1)]


def test_prompt_logprobs_of_media_are_those_of_the_placeholders(engine: Engine, driver: Driver) -> None:
    rig.fill(stage_of(engine), (9, 4), MEDIA[14])
    prompt = [50, *[259] * 5, 60]
    seq = sequence(0, list(prompt))
    row = seq.row(7, embedded=rig.runs(0, 7, {1: (5, (9, 4))}), score=tuple(prompt[1:]))
    (result,) = driver.run(row, seats=(seq.seat(),)).rows
    logits = rig.logits_of(prompt, {1: MEDIA[14]})
    expected = [oracle.log_softmax(logits[at])[token] for at, token in enumerate(prompt[1:])]
    np.testing.assert_allclose([score.sampled for score in result.scores], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("encodes", "words"),
    [
        ((Encode("fox", 9, 9, (1, 2, 3)),), "pixels are not here"),
        ((Encode("cat", 9, 8, (1, 2)),), "9 embeddings, the plan expects 8"),
        ((Encode("cat", 9, 9, (1, 2)),), "9 embeddings in pages"),
        ((Encode("cat", 9, 9, (1, 2, rig.MEDIA_PAGES)),), "the pool has 12"),
        ((Encode("cat", 9, 9, (1, 2, 0)),), "the pool has 12"),
        ((Encode("cat", 9, 9, (1, 2, 3)),) * 3, "27 slots of an encode program"),
    ],
)
def test_what_cannot_be_encoded_breaks_the_engine(
    engine: Engine, driver: Driver, encodes: tuple[Encode, ...], words: str
) -> None:
    rig.bring(stage_of(engine), "cat", CAT)
    with pytest.raises(EngineError, match=words):
        driver.run(encodes=encodes)
    assert engine.broken is not None
    with no_compilation():
        engine.rebuild()


@pytest.mark.parametrize(
    "run",
    [
        Embedded(0, 4, 0, (rig.MEDIA_PAGES,)),
        Embedded(0, 4, 1, (3,)),
        Embedded(0, 5, 0, (3, 4)),
        Embedded(3, 2, 0, (3,)),
        Embedded(0, 1, 0, (0,)),
        Embedded(-1, 1, 0, (3,)),
    ],
)
def test_embeddings_that_are_not_in_the_pool_or_the_row_break_the_engine(driver: Driver, run: Embedded) -> None:
    seq = sequence(0, [1, 2, 3, 4])
    with pytest.raises(EngineError, match="media pages"):
        driver.run(seq.row(4, embedded=(run,)), seats=(seq.seat(),))
    driver.engine.rebuild()


def test_an_instance_that_only_prefills_takes_embeddings_and_encodes_nothing() -> None:
    engine = rig.media_engine(roles=frozenset({Role.PREFILL}))
    driver = Driver(engine)
    rig.fill(stage_of(engine), (7, 2, 5), MEDIA[3])
    prompt = [*[259] * 9, 4]
    seq = sequence(0, prompt)
    assert driver.tokens(seq.row(10, embedded=rig.runs(0, 10, {0: (9, (7, 2, 5))})), seats=(seq.seat(),)) == [
        rig.greedy(prompt, {0: MEDIA[3]}, 1)
    ]
    with pytest.raises(EngineError, match="has no encoder"):
        driver.run(encodes=(Encode("cat", 9, 9, (1, 2, 3)),))


def test_an_instance_that_only_encodes() -> None:
    engine = rig.encode_engine()
    rig.bring(engine.media, "cat", CAT)
    rig.bring(engine.media, "dog", DOG)
    plans = Driver.plan
    driver = Driver(engine)  # type: ignore[arg-type]
    for name, item, pages in (("cat", CAT, (7, 2, 5)), ("dog", DOG, (9, 4))):
        with no_compilation():
            assert engine.collect(engine.dispatch(plans(driver, encodes=(rig.encode(name, item, pages),)))).rows == ()
    np.testing.assert_allclose(rig.stored(engine.media)[[7, 2]].reshape(8, -1), MEDIA[3][:8], atol=1e-5)
    with pytest.raises(EngineError, match="only encodes"):
        engine.dispatch(plans(driver, sequence(0, [1, 2]).row(2)))
    with pytest.raises(EngineError, match="rebuild it"):
        engine.dispatch(plans(driver))
    with no_compilation():
        engine.rebuild()
    assert not rig.stored(engine.media).any()


def test_what_takes_no_media_is_the_program_that_it_was(engine: Engine) -> None:
    """Decode-only programs of an engine with media, and all programs of one that never prefills."""
    loaded = oracle.toy(engine.mesh.size)
    pool = stage_of(engine).pool
    (group,) = kv_groups(loaded.config, "float32")
    plain = {p.name: p for p in Programs(loaded.structure, group, toy_config(buckets=rig.SMALL)).all()}
    whole = replace(engine.config, layer_groups=())
    media = {p.name: p for p in Programs(loaded.structure, group, whole, pool).all()}
    only_decodes = toy_config(buckets=rig.SMALL, roles=frozenset({Role.DECODE}))
    assert plain.keys() == media.keys()
    same = {name for name in plain if plain[name].lower().as_text() == media[name].lower().as_text()}
    assert plain.keys() - same == {"extend decode=4 prefill=16 width=16", "extend decode=0 prefill=6 width=16"}
    for program in Programs(loaded.structure, group, only_decodes).all():
        assert program.lower().as_text() == plain[program.name].lower().as_text()


@pytest.mark.parametrize(
    ("hidden", "heads", "head_dim"), [(64, 16, 2), (576, 16, 18), (4096, 16, 128), (6, 1, 3), (3584, 16, 112)]
)
def test_the_layout_follows_from_the_size_alone(hidden: int, heads: int, head_dim: int) -> None:
    group = media_group(hidden, "bfloat16")
    assert (group.num_kv_heads, group.head_dim, group.layers) == (heads, head_dim, (0,))


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="even number"):
        media_group(63, "float32")


def test_page_bytes_are_what_the_pool_takes() -> None:
    for tp in (1, 2, 3):
        pool = EmbeddingPool.of(oracle.toy(tp).rules, HIDDEN, "float32", PAGE, rig.MEDIA_PAGES)
        taken = sum(np.prod(half.sharding.shard_shape(half.shape)) * 4 for half in pool.structs[0])  # type: ignore[union-attr]
        assert taken == rig.MEDIA_PAGES * pool.page_bytes

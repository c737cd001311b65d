"""A model of three positions a token in an engine: prompts with pictures and a video are the plain forward pass, wherever they are cut."""

from __future__ import annotations

from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models.multimodal.forward import logits
from tests.runtime.engine import media_rig as rig
from tests.runtime.engine.driver import PAGE, Driver, Seq, sequence, toy_config
from triptych.models.hub.media import read_multimodal
from triptych.models.kv import kv_groups
from triptych.models.multimodal.mrope import MediaGrid, mrope_positions
from triptych.models.multimodal.prompt import MediaSpan
from triptych.models.weights.hf import open_hf_folder
from triptych.models.weights.load import LoadedDecoder, load_decoder
from triptych.models.weights.multimodal import text_source
from triptych.runtime.core.errors import EngineError
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.engine.engine import Engine
from triptych.runtime.engine.media_pool import EmbeddingPool
from triptych.runtime.engine.media_stage import MediaStage
from triptych.runtime.engine.placing import place_media
from triptych.runtime.engine.programs import Programs
from triptych.runtime.instance.plan import Embedded, Place, Row
from triptych.runtime.instance.positions import offset_at, places
from triptych.sharding.mesh import make_mesh

pytestmark = pytest.mark.limit(300)

FOLDER = Path(__file__).parents[2] / "models" / "multimodal" / "goldens" / "qwen2_5_vl"
HIDDEN = 32
# A picture of 2 x 3, and a video of two steps of 2 x 2, three positions apart; each with its pages.
ITEMS = (
    MediaItem("x", MediaKind.IMAGE, 3, 6, 24, (1, 2, 3)),
    MediaItem("v0", MediaKind.VIDEO, 11, 4, 16, (1, 2, 2)),
    MediaItem("v1", MediaKind.VIDEO, 15, 4, 16, (1, 2, 2), later=3),
)
PAGES = {"x": (7, 2), "v0": (5,), "v1": (3,)}
SPANS, GRIDS = (MediaSpan(3, 6), MediaSpan(11, 8)), (MediaGrid(1, 2, 3), MediaGrid(2, 2, 2, 3.0))
PROMPT = [11, 90, 3, *[100] * 6, 77, 5, *[103] * 8, 42, 9]
ROWS = np.random.default_rng(1).standard_normal((14, HIDDEN)).astype(np.float32)
COUNT = 4


@cache
def decoder(tp: int = 1) -> LoadedDecoder:
    config = read_multimodal(FOLDER)
    assert config is not None
    return load_decoder(config.text, text_source(open_hf_folder(FOLDER)), make_mesh(jax.devices()[:tp], tp), "float32")


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Engine:
    loaded = decoder(request.param)
    config = toy_config(buckets=rig.SMALL, media_pages=rig.MEDIA_PAGES, mrope=True)
    stage = MediaStage(EmbeddingPool.of(loaded.rules, HIDDEN, "float32", PAGE, rig.MEDIA_PAGES))
    engine = Engine(config, loaded, loaded.rules.mesh, stage)
    engine.compile()
    for item, rows in zip(ITEMS, np.split(ROWS, (6, 10)), strict=True):
        rig.fill(stage, PAGES[item.hash], rows)
    return engine


@cache
def follows(outputs: tuple[int, ...]) -> list[int]:
    """The greedy token after the prompt and after each of `outputs` but the last, by the forward pass without pages, cuts or programs of its own,
    from the reference's positions."""
    tokens = np.asarray([*PROMPT, *outputs[:-1]])
    positions = mrope_positions(len(tokens), SPANS, GRIDS).positions
    found = logits(decoder(), tokens, SPANS, [ROWS[:6], ROWS[6:]], positions)
    return found[len(PROMPT) - 1 :].argmax(axis=1).tolist()


def runs(start: int, end: int) -> tuple[Embedded, ...]:
    found = []
    for item, place in places(ITEMS):
        first, last = max(item.offset, start), min(item.end, end)
        if first < last:
            found.append(Embedded(first - start, last - first, first - item.offset, PAGES[item.hash], place))
    return tuple(found)


def chunk(seq: Seq, start: int, end: int) -> Row:
    seq.position_offset = offset_at(ITEMS, start)
    return seq.row(end - start, draws=end == len(PROMPT), embedded=runs(start, end))


@pytest.mark.parametrize("sizes", [(16, 5), (3, 8, 10), (5, 1, 2, 8, 1, 4), (1,) * 21, (12, 9)])
def test_a_prompt_is_the_plain_forward_wherever_it_is_cut(engine: Engine, sizes: tuple[int, ...]) -> None:
    driver, seq = Driver(engine), sequence(0, list(PROMPT))
    assert sum(sizes) == len(PROMPT)
    for start, end in pairwise((0, *accumulate(sizes))):
        result = driver.tokens(chunk(seq, start, end), seats=(seq.seat(),))
    seq.outputs.append(result[0][0])
    seq.position_offset = offset_at(ITEMS, len(PROMPT))
    for _ in range(COUNT - 1):
        ((token,),) = driver.tokens(seq.carried_row())
        seq.outputs.append(token)
    assert seq.outputs == follows(tuple(seq.outputs))


def test_a_picture_text_and_decoding_share_a_step(engine: Engine) -> None:
    driver, text, seen = Driver(engine), sequence(0, [9, 8, 7]), sequence(1, list(PROMPT))
    alone = driver.generate([sequence(0, [9, 8, 7])], 3)[0]
    text.outputs.append(driver.tokens(text.row(3), seats=(text.seat(),))[0][0])
    text.outputs.append(driver.tokens(text.carried_row(), chunk(seen, 0, 13), seats=(seen.seat(),))[0][0])
    last, first = driver.tokens(text.carried_row(), chunk(seen, 13, 21))
    whole = sequence(2, list(PROMPT))
    driver.tokens(chunk(whole, 0, 16), seats=(whole.seat(),))
    assert (text.outputs + last, [first]) == (alone, driver.tokens(chunk(whole, 16, 21)))


def test_the_places_matter() -> None:
    """What the tests above rest on."""
    rows = [ROWS[:6], ROWS[6:]]
    placed = logits(decoder(), np.asarray(PROMPT), SPANS, rows, mrope_positions(len(PROMPT), SPANS, GRIDS).positions)
    assert np.abs(placed - logits(decoder(), np.asarray(PROMPT), SPANS, rows))[-1].max() > 1e-2


def test_only_programs_that_take_media_have_three_positions(engine: Engine) -> None:
    loaded, pool = decoder(engine.mesh.size), engine.media.pool  # type: ignore[union-attr]
    (group,) = kv_groups(loaded.config, "float32")
    plain = toy_config(buckets=rig.SMALL, media_pages=rig.MEDIA_PAGES)
    three, one = (
        {
            p.name: p.lower().as_text()
            for p in Programs(loaded.structure, group, config, pool).all()
            if "extend" in p.name
        }
        for config in (engine.config, plain)
    )
    changed = {name for name in one if one[name] != three[name]}
    assert changed == {"extend decode=4 prefill=16 width=16", "extend decode=0 prefill=6 width=16"}


@pytest.mark.parametrize(
    ("run", "dimensions", "words"),
    [
        (Embedded(0, 4, 0, (3,), Place((1, 2, 2), 0, 0, 2)), 1, "one position each"),
        (Embedded(0, 4, 1, (3, 4), Place((1, 2, 2), 0, 0, 2)), 3, "has no embedding 4"),
    ],
)
def test_places_that_do_not_fit_are_refused(run: Embedded, dimensions: int, words: str) -> None:
    row = Row(0, (1,) * 4, 0, 0, (1,), embedded=(run,))
    positions = np.zeros((3, 8) if dimensions == 3 else 8, np.int32)
    with pytest.raises(EngineError, match=words):
        place_media(positions, row, 0)

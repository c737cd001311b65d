"""Positions of media under M-RoPE: those of the reference in models/multimodal, wherever a prompt is cut, found in a cache, preempted or resumed."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.fake_device import FakeDevice, expected_outputs, read_prompt
from tests.runtime.instance.media import asked, check, feed, local, media_config, pulled, serve
from triptych.models.multimodal.mrope import MediaGrid, mrope_positions
from triptych.models.multimodal.prompt import MediaSpan
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.request import Continuation, Request, SampleState
from triptych.runtime.core.tasks import (
    PrefillDone,
    Refused,
    ReserveDecode,
    StageTimes,
    StartDecode,
    StartLocal,
    StartPrefill,
)
from triptych.runtime.engine.placing import place_media
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.messages import CompleteStaging, Imported
from triptych.runtime.instance.plan import Row, StepPlan, StepResult
from triptych.runtime.instance.positions import difference, offset_at, places

LONGEST = 64


def picture(name: str, offset: int, rows: int, columns: int) -> MediaItem:
    return MediaItem(name, MediaKind.IMAGE, offset, rows * columns, 8, (1, rows, columns))


def video(name: str, offset: int, steps: int, rows: int, columns: int, spacing: float) -> tuple[MediaItem, ...]:
    """One item a step."""
    size = rows * columns
    return tuple(
        replace(
            picture(f"{name}{step}", offset + step * size, rows, columns), later=int(step * spacing) if step else None
        )
        for step in range(steps)
    )


# Text, a picture, text, a video of which two steps share a position, text.
MEDIA = (picture("x", 2, 2, 3), *video("v", 11, 3, 2, 2, 0.75))
SPANS = (MediaSpan(2, 6), MediaSpan(11, 12))
GRIDS = (MediaGrid(1, 2, 3), MediaGrid(3, 2, 2, 0.75))
REFERENCE = mrope_positions(LONGEST, SPANS, GRIDS).positions


class PlacedDevice(FakeDevice):
    """Every input token of every row must stand where the reference says; all requests have MEDIA."""

    def __init__(self, config: InstanceConfig):
        super().__init__(config)
        self.starts: set[int] = set()

    def execute(self, plan: StepPlan) -> StepResult:
        for row in plan.rows:
            np.testing.assert_array_equal(positions_of(row), REFERENCE[:, row.start : row.start + row.length])
            self.starts.add(row.start)
        rows = tuple(row._replace(position=row.start) for row in plan.rows)
        return super().execute(replace(plan, rows=rows))


def positions_of(row: Row) -> np.ndarray:
    positions = np.tile(np.arange(row.position, row.position + row.length, dtype=np.int32), (3, 1))
    place_media(positions, row, 0)
    return positions


def node_of(roles: str = "PD", **changes) -> Node:  # type: ignore[no-untyped-def]
    node = Node(media_config("i", roles, mrope=True, **({"media_pages": 32} | changes)))
    node.device = PlacedDevice(node.config)
    return node


@pytest.mark.parametrize("seed", range(20))
def test_they_are_those_of_the_reference(seed: int) -> None:
    luck = random.Random(seed)
    at, items, spans, grids = 0, [], [], []
    for number in range(luck.randrange(4)):
        at += luck.randrange(3)
        rows, columns = luck.randint(1, 4), luck.randint(1, 4)
        steps = luck.randint(1, 4)
        spacing = luck.choice((0.25, 1.0, 2.5)) if steps > 1 else 1.0
        items += video(str(number), at, steps, rows, columns, spacing)
        spans.append(MediaSpan(at, steps * rows * columns))
        grids.append(MediaGrid(steps, rows, columns, spacing))
        at = items[-1].end
    media, reference = tuple(items), mrope_positions(at + 3, spans, grids)
    assert difference(media) is None
    covered = {index for item in media for index in range(item.offset, item.end)}
    for index in set(range(at + 3)) - covered:
        assert [index + offset_at(media, index)] * 3 == reference.positions[:, index].tolist()
    assert offset_at(media, 10**6) == reference.offset
    for item, place in places(media):
        steps, rows, columns = place.grid
        found = np.indices((steps, rows, columns)).reshape(3, -1)
        found += np.array([[place.time], [place.origin], [place.origin]])
        np.testing.assert_array_equal(found, reference.positions[:, item.offset : item.end])


def test_an_item_of_several_steps_has_them_one_position_apart() -> None:
    whole = replace(picture("x", 1, 2, 2), tokens=12, grid=(3, 2, 2))
    assert next(places((whole,)))[1].following == 4
    reference = mrope_positions(15, (MediaSpan(1, 12),), (MediaGrid(3, 2, 2),))
    assert offset_at((whole,), 13) == reference.offset


@pytest.mark.parametrize("chunk", [1, 3, 7, 16])
def test_chunks_begin_anywhere(chunk: int) -> None:
    node = node_of(chunk_tokens=chunk)
    req = asked("a", *MEDIA, max_tokens=5)
    serve(node, req)
    check(node, req)
    assert isinstance(node.device, PlacedDevice)
    assert chunk == 16 or any(2 < start < 8 for start in node.device.starts), "no chunk began inside the picture"


def test_a_cached_prefix_ends_inside_an_item() -> None:
    """Pages of four tokens; the second prompt is that of the first up to the last step of the video."""
    node = node_of()
    first = asked("a", *MEDIA)
    serve(node, first)
    other = (*MEDIA[:-1], replace(MEDIA[-1], hash="another"))
    second = replace(asked("b", *other), prompt=first.prompt)
    serve(node, second, key=78)
    check(node, second)
    reports = {report.request: report.report.cached_tokens for report in node.reports(PrefillDone)}
    assert reports == {"a": 0, "b": 16} and 16 < MEDIA[-1].offset


def test_a_preempted_sample_is_computed_again_in_its_places() -> None:
    """Its prompt and outputs are one chunk then."""
    older, req = asked("o", *MEDIA, max_tokens=14), asked("a", *MEDIA, max_tokens=9)
    node = node_of(num_pages=16, prefix_cache=False, max_num_seqs=2, chunk_tokens=64)
    for one, key in ((older, 77), (req, 78)):
        local(node, one)
        for pull in feed(node, one, *range(len(MEDIA)), key=key):
            pulled(node, one, pull, *(item.hash for item in MEDIA))
    node.run()
    check(node, older)
    check(node, req)
    again = [row for plan in node.device.plans for row in plan.rows if row.length > len(req.prompt)]
    assert again, "nothing was computed again"


def test_a_resumed_sample_goes_on_in_its_places() -> None:
    node = node_of()
    req = asked("a", *MEDIA, max_tokens=8)
    outputs, _ = expected_outputs(req, LONGEST)
    local_again = replace(req, attempt=2)
    node.command(StartLocal(local_again, (SampleState(0, tuple(outputs[:3])),)))
    (pull,) = feed(node, local_again, *range(len(MEDIA)))
    pulled(node, local_again, pull, *(item.hash for item in MEDIA))
    node.run()
    assert [token.token for token in node.tokens("a")] == outputs[3:]


def test_prefill_hands_the_offset_on_and_decode_counts_from_it() -> None:
    prefill, decode = node_of("P"), node_of("D", media_pages=0, encode_patches=0)
    req = asked("a", *MEDIA, max_tokens=6)
    prefill.command(StartPrefill(req, 0, 5.0))
    (pull,) = feed(prefill, req, *range(len(MEDIA)))
    pulled(prefill, req, pull, *(item.hash for item in MEDIA))
    prefill.run()
    (staged,) = [message for message in prefill.messages if isinstance(message, CompleteStaging)]
    assert staged.continuation is not None
    behind = SPANS[-1].offset + SPANS[-1].count
    assert staged.continuation.position_offset == REFERENCE[0, behind] - behind != 0

    decode.command(ReserveDecode(req, 5.0))
    decode.command(StartDecode("a", Handle(InstanceRef("p", 1), "host:p", 1, "d")))
    _arrived(decode, req, staged.continuation)
    decode.run()
    assert [token.token for token in decode.tokens("a")] == expected_outputs(req, LONGEST)[0][1:]


def _arrived(node: Node, req: Request, continuation: Continuation) -> None:
    """The KV of the prompt is in the reserved pages."""
    (task,) = (task for task in node.core._state.tasks.values())
    assert task.sequence is not None
    for index, token in enumerate(read_prompt(req)):
        node.device.pages[task.sequence.pages[index // 4]][index % 4] = (token, index)
    node.send(Imported(req.id, continuation, StageTimes(), 1))


@pytest.mark.parametrize(
    ("media", "words"),
    [
        ((replace(picture("x", 2, 2, 3), grid=(1, 1, 5)),), "6 tokens and a grid"),
        ((replace(picture("x", 2, 2, 3), grid=(6,)),), "6 tokens and a grid"),
        ((replace(picture("x", 2, 2, 3), later=1),), "right behind"),
        ((picture("x", 2, 2, 3), replace(picture("y", 9, 2, 3), later=1)), "right behind"),
    ],
)
def test_grids_that_cannot_be_are_refused(media: tuple[MediaItem, ...], words: str) -> None:
    node = node_of()
    local(node, asked("a", *media))
    (refused,) = node.reports(Refused)
    assert words in refused.reason and refused.permanent and refused.role is Role.DECODE
    plain = Node(media_config("i", "PD"))
    local(plain, asked("a", *media))
    assert not plain.reports(Refused), "who has no such positions does not ask"

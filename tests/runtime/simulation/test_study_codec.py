"""Whatever the parties of a study say to each other arrives in the other process as it was said."""

from __future__ import annotations

import pickle
import typing

import pytest

from triptych.runtime.core.control import Heartbeat, InstanceLoad, Reported
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import Load, Role
from triptych.runtime.core.request import Continuation, Finish, FinishReason, PromptReport, Request, SampleState
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    EncodeDone,
    EncodeStaged,
    FeedMedia,
    Granted,
    MediaWanted,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StageTimes,
    StartDecode,
    StartEncode,
    StartLocal,
    StartPrefill,
    TaskCommand,
    TaskEnded,
    TaskReport,
)
from triptych.runtime.core.topology import parse
from triptych.runtime.instance.messages import Command, LeaseExtended, MediaArrived, StagedReleased
from triptych.runtime.instance.plan import Pool
from triptych.runtime.simulation.steptime import Affine
from triptych.runtime.simulation.study_book import Book
from triptych.runtime.simulation.study_codec import Codec
from triptych.runtime.simulation.study_fleet import seats
from triptych.runtime.simulation.study_layout import Device, Limits, layout
from triptych.runtime.simulation.study_transfer import Gone, Pages, PullOpened
from triptych.runtime.simulation.workload import Arrival, Image, Shape
from triptych.runtime.simulation.workload_tokens import TokenSource

TOKENS = TokenSource(3)
DEVICE = Device(Affine(1, 1, 1, 1), Limits(), 100, 1e9, 1000)
WORKERS = seats(layout(parse("1P1D"), DEVICE, DEVICE))
REF = WORKERS[0][0].info.ref
PLAIN = Arrival(17, 1 / 3, Shape(100, 20))
IMAGES = (Image(7, 30, 31), Image(8, 30, 31))
SHAPES = [PLAIN, Arrival(18, 0.5, Shape(600, 9, 4)), Arrival(19, 2.0, Shape(1000, 1, None, (5, 9), 512, IMAGES))]
TIMES = StageTimes(0.1, 1 / 3, 0.3, 4096, 5, 6)
HANDLE = Handle(REF, "", (1 << 64) - 1, "digest")


def messages(request: Request) -> list:
    started = Continuation(
        request, (SampleState(0, (7,)), SampleState(1, (8, 9), Finish(FinishReason.LENGTH, None))), 3
    )
    reports: list[TaskReport] = [
        Granted(request.id, 32),
        Refused(request.id, Role.DECODE, "no room", True),
        Staged(request.id, HANDLE),
        Accepted(request.id),
        PrefillDone(request.id, PromptReport(100, 32), False, TIMES),
        DecodeStarted(request.id, TIMES),
        MediaWanted(request.id, (0, 1)),
        EncodeStaged(request.id, HANDLE, (1,)),
        EncodeDone(request.id, 2, TIMES),
        TaskEnded(request.id, Role.PREFILL, Status.DEADLINE_EXCEEDED, "late", 2),
    ]
    commands: list[TaskCommand] = [
        ReserveDecode(request, 30.0),
        StartPrefill(request, 16, 10.0),
        StartDecode(request.id, HANDLE),
        StartLocal(request),
        StartEncode(request, (0, 1), 5.0, 10.0),
        FeedMedia(request.id, HANDLE, (1, 0)),
        AbortTask(request.id, Status.OK, "finished", Role.DECODE, 1),
        AbortTask(request.id, Status.CANCELLED, "gone"),
    ]
    assert {type(r) for r in reports} == set(typing.get_args(TaskReport))
    assert {type(c) for c in commands} == set(typing.get_args(TaskCommand))
    return [
        *(Reported(REF, report) for report in reports),
        *map(Command, commands),
        Heartbeat("decode-worker-0", (InstanceLoad(REF, Load(1, 2, 3, 4, 5, 6, 7, 8, 9)),)),
        Heartbeat("decode-worker-0"),
        PullOpened(2, request.id, 99, 7, 1e9),
        PullOpened(2, request.id, 99, 7, 1e9, Pool.MEDIA),
        Pages(request.id, 99, 7, 0.25, False, None),
        Pages(request.id, 99, 7, 0.25, True, None),
        Pages(request.id, 99, 0, 0.0, True, started),
        Gone(request.id, 99),
        MediaArrived("abc"),
        LeaseExtended(99),
        LeaseExtended(99, waiting=True),
        StagedReleased(99),
    ]


@pytest.mark.parametrize("arrival", SHAPES)
def test_every_message_arrives_as_it_was_sent(arrival: Arrival):
    mine, theirs = Book(TOKENS), Book(TOKENS)
    here, there = Codec(mine, WORKERS), Codec(theirs, WORKERS)
    theirs.open(arrival)
    for number, message in enumerate(messages(mine.open(arrival))):
        sent = (0.1 * number, -number, 1, message)
        flat = pickle.loads(pickle.dumps(here.encode(sent)))
        assert there.decode(flat) == sent


def test_a_request_is_made_on_the_other_side_from_its_arrival():
    mine, theirs = Book(TOKENS), Book(TOKENS)
    request = mine.open(SHAPES[2])
    sent = (1.0, 0, 1, Command(StartLocal(request)))
    flat = Codec(mine, WORKERS).encode(sent)
    assert len(pickle.dumps(flat)) < 200 < len(pickle.dumps(request))
    came = Codec(theirs, WORKERS).decode(flat)
    assert came == sent and theirs.request(request.id) == request and theirs.arrival(request.id) == SHAPES[2]
    theirs.close(request.id)
    theirs.close(request.id)
    assert not len(theirs)


def test_what_was_resumed_does_not_cross():
    book = Book(TOKENS)
    command = Command(ReserveDecode(book.open(PLAIN), 30.0, (SampleState(0, (7,)),)))
    with pytest.raises(AssertionError, match="nothing fails here"):
        Codec(book, WORKERS).encode((1.0, 0, 1, command))

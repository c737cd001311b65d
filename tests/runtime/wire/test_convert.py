"""Every core value that crosses the wire comes back equal; a deadline crosses as what remains of it."""

import dataclasses

import pytest

from triptych.proto.v1 import common_pb2, control_pb2
from triptych.runtime.core import control, tasks
from triptych.runtime.core.errors import InvalidRequestError, Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import Capacity, Compatibility, InstanceInfo, InstanceRef, Load, Role, TransportKind
from triptych.runtime.core.request import (
    Continuation,
    Finish,
    FinishReason,
    Logprobs,
    PromptReport,
    Request,
    SampleState,
    TokenOut,
)
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.wire.convert import decode, decode_oneof, encode, encode_oneof

REF = InstanceRef("prefill-0", 2**62 + 5)
SAMPLING = SamplingParams(
    max_tokens=5,
    temperature=0.7,
    logit_bias=((3, -1.5), (9, 2.0)),
    seed=2**64 - 1,
    n=2,
    stop=("é",),
    stop_token_ids=(7,),
    logprobs=0,
)
REQUEST = Request("r1", "g1", "m", (1, 2, 3), SAMPLING, deadline=100.0, attempt=2, priority=-3, cache_salt="s")
INFO = InstanceInfo(
    REF,
    "w",
    "h:1",
    frozenset({Role.PREFILL, Role.DECODE}),
    Capacity(4, 10, 16, 64),
    Compatibility(1, "m", "rev", "float32", 16, "v1"),
    2,
    (TransportKind.LOCAL, TransportKind.GRPC),
    "p1",
    (("host", "a"),),
)
TIMES = tasks.StageTimes(0.1, 0.2, 0.3, 5, 6, 7)
CONTINUATION = Continuation(REQUEST, (SampleState(0, (5,), Finish(FinishReason.STOP, "é")), SampleState(1, (6,))), 3)


@pytest.mark.parametrize(
    "value, message",
    [
        (SAMPLING, common_pb2.SamplingParams),
        (INFO, common_pb2.InstanceInfo),
        (
            TokenOut("r", 1, 0, 9, 3, Logprobs(-0.5, ((1, -0.1), (2, -0.2))), Finish(FinishReason.STOP, 7)),
            common_pb2.TokenOut,
        ),
        (TokenOut("r", 1, 0, 9, 3, None, Finish(FinishReason.LENGTH)), common_pb2.TokenOut),
        (PromptReport(3, 1, ((1, None), (2, Logprobs(-1.0)))), common_pb2.PromptReport),
    ],
)
def test_values_round_trip(value, message):
    assert decode(message.FromString(encode(value, message, 0.0).SerializeToString()), type(value), 0.0) == value


@pytest.mark.parametrize(
    "value, message",
    [
        (tasks.AbortTask("r", Status.CANCELLED, "gone", Role.DECODE), control_pb2.TaskCommand),
        (tasks.AbortTask("r", Status.OK, "done"), control_pb2.TaskCommand),
        (tasks.StartDecode("r", Handle(REF, "h:1", 2**63 - 1, "d")), control_pb2.TaskCommand),
        (tasks.Granted("r", 0), control_pb2.TaskReport),
        (tasks.PrefillDone("r", PromptReport(3, 0), True, TIMES), control_pb2.TaskReport),
        (tasks.TaskEnded("r", Role.PREFILL, Status.OK), control_pb2.TaskReport),
        (control.Reported(REF, tasks.Refused("r", Role.DECODE, "full")), control_pb2.WorkerMessage),
        (control.WorkerJoined("w", (INFO,)), control_pb2.WorkerMessage),
        (control.Heartbeat("w", (control.InstanceLoad(REF, Load(1, 2, 3, 4, 5, 6)),)), control_pb2.WorkerMessage),
        (control.InstanceReset("w", REF, INFO, "why"), control_pb2.WorkerMessage),
        (control.Failed("r", Status.UNAVAILABLE, "lost", 0.5), control_pb2.GatewayNotice),
        (control.Directory((INFO,)), control_pb2.GatewayNotice),
        (control.Progress("r", Role.DECODE, TIMES), control_pb2.GatewayNotice),
    ],
)
def test_unions_round_trip(value, message):
    assert decode_oneof(message.FromString(encode_oneof(value, message, 0.0).SerializeToString()), 0.0) == value


def test_a_continuation_round_trips_with_its_deadline_moved_to_the_receivers_clock():
    wire = encode(CONTINUATION, common_pb2.Continuation, now=90.0)
    assert wire.request.deadline == 10.0
    moved = dataclasses.replace(CONTINUATION, request=dataclasses.replace(REQUEST, deadline=1010.0))
    assert decode(wire, Continuation, now=1000.0) == moved


def test_an_unknown_enum_value_is_a_typed_error():
    message = control_pb2.TaskReport(refused=control_pb2.Refused(request="r", role="juggle"))
    with pytest.raises(InvalidRequestError, match="juggle"):
        decode_oneof(message, 0.0)


def test_an_empty_oneof_is_a_typed_error():
    with pytest.raises(InvalidRequestError, match="nothing"):
        decode_oneof(control_pb2.TaskReport(), 0.0)

"""The task protocol of core/tasks.py, command by command."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import Node, config, request
from tests.runtime.instance.fake_device import TokenProbe, expected_outputs
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Continuation, SampleState
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    DecodeStarted,
    Granted,
    Refused,
    ReserveDecode,
    StageTimes,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance.messages import (
    CancelPull,
    DeviceReady,
    Imported,
    ImportFailed,
    Report,
    StartPull,
    Tick,
)
from triptych.runtime.instance.plan import StepPlan

HANDLE = Handle(InstanceRef("p", 3), "host:p", 99, "d")
START = {Role.PREFILL: lambda req: StartPrefill(req, 0, 5.0), Role.DECODE: lambda req: ReserveDecode(req, 5.0)}


def _pulling(req, **changes) -> Node:
    """A node that pulls for `req`, with the prompt already in its pages."""
    node = Node(config(**changes))
    node.command(ReserveDecode(req, 5.0))
    (pull,) = node.command(StartDecode(req.id, HANDLE))
    assert isinstance(pull, StartPull)
    size = node.config.page_size
    for index, token in enumerate(req.prompt):
        if index // size >= pull.first_page:
            node.device.pages[pull.pages[index // size - pull.first_page]][index % size] = (token, index)
    return node


def _imported(req, *outputs: list[int]) -> Imported:
    samples = tuple(SampleState(sample, tuple(known)) for sample, known in enumerate(outputs))
    return Imported(
        req.id, Continuation(req, samples), StageTimes(transfer=0.5, bytes_moved=10, pages_pulled=3), req.attempt
    )


def test_a_reservation_holds_pages_and_slots_and_answers_at_once():
    node = Node(config())
    (answer,) = node.command(ReserveDecode(request("a", 9, n=2), 5.0))
    assert answer == Report(Granted("a", 0))
    held = node.core.resources()
    assert held.reserved_pages == 4  # two full pages shared, and one each for the rest and the first output
    assert held.free_slots == 6


def test_a_reservations_hit_may_cover_the_whole_prompt_and_is_pinned():
    node = Node(config(num_pages=9))
    prompt = tuple(range(1, 9))
    node.command(StartLocal(request("warm", (*prompt, 9), max_tokens=1)))
    node.run()
    assert node.command(ReserveDecode(request("a", prompt), 5.0)) == [Report(Granted("a", 8))]
    (pull,) = node.command(StartDecode("a", HANDLE))
    assert isinstance(pull, StartPull) and pull.pages == () and pull.first_page == 2
    assert node.core.resources().reserved_pages == 3


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
@pytest.mark.parametrize(
    ("prompt", "params", "changes", "word"),
    [
        (64, {}, {}, "max_model_len"),
        (40, {}, {"num_pages": 6}, "KV pages"),
        (4, {"n": 9}, {}, "slots"),
        ((), {}, {}, "empty"),
    ],
)
def test_what_could_never_fit_is_refused_for_good(role, prompt, params, changes, word):
    node = Node(config(**changes))
    (answer,) = node.command(START[role](request("a", prompt, **params)))
    assert isinstance(answer, Report) and isinstance(answer.report, Refused)
    assert answer.report.permanent and word in answer.report.reason and answer.report.role is role
    assert node.core.resources().idle


def test_a_full_house_refuses_for_now():
    node = Node(config(num_pages=6, max_num_seqs=2))
    node.command(ReserveDecode(request("a", 15), 5.0))
    node.command(ReserveDecode(request("b", 5), 5.0))
    node.command(ReserveDecode(request("c", 1, n=2), 5.0))
    assert [(refused.request, refused.permanent) for refused in node.reports(Refused)] == [("b", False), ("c", False)]


def test_a_role_that_the_instance_lacks_is_refused_for_good():
    node = Node(config(roles=frozenset({Role.DECODE})))
    node.command(StartPrefill(request("a"), 0, 5.0))
    node.command(StartLocal(request("b")))
    assert [(refused.request, refused.role, refused.permanent) for refused in node.reports(Refused)] == [
        ("a", Role.PREFILL, True),
        ("b", Role.DECODE, True),
    ]


def test_a_repeated_command_is_refused_and_the_live_task_untouched():
    node = Node(config())
    req = request("a")
    for command in (StartLocal(req), StartLocal(req), ReserveDecode(req, 5.0)):
        node.command(command)
    assert len(node.reports(Accepted)) == 1 and len(node.reports(Refused)) == 2
    node.run()
    assert [token.token for token in node.tokens("a")] == expected_outputs(req, 64)[0]


def test_a_grant_expires_unless_decoding_was_started():
    node = Node(config())
    node.command(ReserveDecode(request("a"), 5.0))
    node.command(ReserveDecode(request("b"), 5.0))
    node.command(StartDecode("b", HANDLE))
    node.now = 5.0
    assert node.send(Tick()) == [
        Report(TaskEnded("a", Role.DECODE, Status.UNAVAILABLE, "the reservation expired before decoding was started"))
    ]
    assert node.command(StartDecode("a", HANDLE)) == []
    assert [key for key, *_ in node.core.resources().tasks] == ["b"]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_deadline_ends_a_task_in_any_state_before_more_is_computed(steps):
    node = Node(config(chunk_tokens=4))
    node.command(StartLocal(request("a", 10, deadline=2.0, max_tokens=None)))
    node.command(StartPrefill(request("b", 10, deadline=2.0), 0, 50.0))
    for _ in range(steps):
        node.ready()
        node.done()
    node.now = 2.0
    assert not node.ready()
    ends = node.reports(TaskEnded)
    assert [(end.request, end.status) for end in ends] == [(name, Status.DEADLINE_EXCEEDED) for name in "ab"]
    assert node.core.resources().idle


def test_start_decode_pulls_the_pages_that_are_missing():
    req = request("a", 10, deadline=7.0)
    node = Node(config())
    node.command(ReserveDecode(req, 5.0))
    (pull,) = node.command(StartDecode("a", HANDLE))
    assert isinstance(pull, StartPull) and len(pull.pages) == 3 and pull.first_page == 0
    assert (pull.source_key, pull.source_address, pull.source_instance, pull.source_epoch, pull.source_digest) == (
        99,
        "host:p",
        "p",
        3,
        "d",
    )
    assert pull.prompt_tokens == 10 and pull.deadline == 7.0
    assert node.command(StartDecode("a", HANDLE)) == []


@pytest.mark.parametrize("known", [0, 1, 2, 5])
def test_decoding_goes_on_from_any_number_of_outputs(known):
    req = request("a", 8, max_tokens=9)
    outputs, _ = expected_outputs(req, 64)
    node = _pulling(req)
    (started,) = node.send(_imported(req, outputs[:known]))
    assert started == Report(DecodeStarted("a", StageTimes(transfer=0.5, bytes_moved=10, pages_pulled=3)))
    node.run()
    assert [token.token for token in node.tokens("a")] == outputs[known:]
    assert [token.position for token in node.tokens("a")] == list(range(8 + known, 17))
    assert [end.status for end in node.reports(TaskEnded)] == [Status.OK]


def test_a_sequence_of_exactly_the_pools_size_is_recomputed_and_ends():
    req = request("a", 12, max_tokens=5)
    outputs, _ = expected_outputs(req, 64)
    node = _pulling(req, num_pages=5)
    node.send(_imported(req, outputs[:4]))
    node.run()
    assert [token.token for token in node.tokens("a")] == outputs[4:]
    assert node.core.resources().idle


def test_rope_positions_carry_the_continuations_offset():
    req = request("a", 6, max_tokens=3)
    node = _pulling(req)
    event = _imported(req, expected_outputs(req, 64)[0][:1])
    answers = node.core.handle(replace(event, continuation=replace(event.continuation, position_offset=100)), 0.0)
    assert len(answers) == 1
    (plan,) = node.core.handle(DeviceReady(), 0.0)
    assert isinstance(plan, StepPlan)
    assert (plan.rows[0].start, plan.rows[0].position, plan.rows[0].draws[0].position) == (6, 106, 7)


def test_the_import_enters_the_prefix_cache_only_when_it_is_complete():
    req = request("a", 9)
    node = _pulling(req)
    other = replace(req, id="b")
    node.command(ReserveDecode(other, 5.0))
    node.send(_imported(req, expected_outputs(req, 64)[0][:1]))
    node.command(ReserveDecode(replace(req, id="c"), 5.0))
    assert [granted.cached_tokens for granted in node.reports(Granted)] == [0, 0, 8]


def test_nothing_live_in_the_continuation_ends_the_task():
    req = request("a", n=2)
    node = _pulling(req)
    (ended,) = node.send(Imported("a", Continuation(req, ()), StageTimes(), 1))
    assert ended == Report(TaskEnded("a", Role.DECODE, Status.OK))
    assert node.core.resources().idle


@pytest.mark.parametrize(
    "wrong",
    [
        lambda req: Continuation(replace(req, attempt=2), (SampleState(0, (1,)),)),
        lambda req: Continuation(replace(req, prompt=(1, 2)), (SampleState(0, (1,)),)),
        lambda req: Continuation(req, (SampleState(1, (1,)),)),
        lambda req: Continuation(req, (SampleState(0, (1,)), SampleState(0, (2,)))),
        lambda req: Continuation(req, (SampleState(0, tuple(range(6))),)),
    ],
    ids=["attempt", "prompt", "sample", "twice", "no room"],
)
def test_a_continuation_that_does_not_fit_ends_the_task_typed(wrong):
    req = request("a")
    node = _pulling(req)
    node.send(Imported("a", wrong(req), StageTimes(), 1))
    assert [end.status for end in node.reports(TaskEnded)] == [Status.FAILED_PRECONDITION]
    assert not any(isinstance(message, CancelPull) for message in node.messages)
    assert node.core.resources().idle


def test_a_failed_pull_ends_the_task_and_frees_its_pages():
    req = request("a")
    node = _pulling(req)
    assert node.send(ImportFailed("a", Status.DATA_LOSS, "checksum", 1)) == [
        Report(TaskEnded("a", Role.DECODE, Status.DATA_LOSS, "checksum"))
    ]
    assert node.core.resources().idle
    assert node.send(_imported(req, [1])) == [] and node.send(ImportFailed("a", Status.DATA_LOSS, "again", 1)) == []


def test_abort_while_pulling_cancels_the_pull_first():
    node = _pulling(request("a"))
    assert node.command(AbortTask("a", Status.CANCELLED, "gone")) == [
        CancelPull("a"),
        Report(TaskEnded("a", Role.DECODE, Status.CANCELLED, "gone")),
    ]
    assert node.core.resources().idle


def test_abort_of_what_is_not_known_is_not_answered():
    node = Node(config())
    node.command(StartLocal(request("a")))
    assert node.command(AbortTask("b", Status.CANCELLED, "gone")) == []
    assert node.command(AbortTask("a", Status.CANCELLED, "gone", Role.PREFILL)) == []


def test_abort_without_a_role_ends_every_task_of_the_request():
    node = Node(config())
    node.command(StartPrefill(request("a"), 0, 5.0))
    node.command(ReserveDecode(request("a"), 5.0))
    node.command(AbortTask("a", Status.CANCELLED, "gone"))
    assert {end.role for end in node.reports(TaskEnded)} == {Role.PREFILL, Role.DECODE}
    assert node.core.resources().idle


def test_stop_probes_are_built_only_for_stop_strings():
    built = []

    def probe(stops: tuple[str, ...]) -> TokenProbe:
        built.append(stops)
        return TokenProbe(stops)

    node = Node(config(), stop_probe=probe)
    for req in (request("a"), request("b", stop=("<never>",))):
        node.command(StartLocal(req))
    node.run()
    assert built == [("<never>",)]


def test_an_imported_sample_replays_its_outputs_to_its_stop_probe():
    """A stop string over two tokens, the first of which was drawn by the prefill instance."""
    req = request("a", 8, stop=("pair",), max_tokens=9)
    outputs, _ = expected_outputs(replace(req, sampling=replace(req.sampling, stop=())), 64)

    class Pair:
        def __init__(self, stops: tuple[str, ...]):
            self.seen: list[int] = []

        def push(self, token: int) -> str | None:
            self.seen.append(token)
            return "pair" if self.seen == outputs[:2] else None

    node = Node(config(), stop_probe=Pair)
    node.command(ReserveDecode(req, 5.0))
    (pull,) = node.command(StartDecode("a", HANDLE))
    assert isinstance(pull, StartPull)
    for index, token in enumerate(req.prompt):
        node.device.pages[pull.pages[index // 4]][index % 4] = (token, index)
    node.send(_imported(req, outputs[:1]))
    node.run()
    (token,) = node.tokens("a")
    assert token.finish is not None and token.finish.matched == "pair"

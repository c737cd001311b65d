"""A request that begins again goes on from what its client has seen, and what is left of earlier attempts does not count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import Cluster, Node, config, request
from tests.runtime.instance.fake_device import expected_outputs
from triptych.runtime.core.errors import Status
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Continuation, Request, SampleState
from triptych.runtime.core.tasks import (
    AbortTask,
    Accepted,
    Granted,
    HeldTask,
    PrefillDone,
    Refused,
    ReserveDecode,
    Staged,
    StageTimes,
    StartDecode,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance.messages import (
    CancelPull,
    CompleteStaging,
    Emit,
    EmitPrompt,
    Imported,
    ImportFailed,
    Report,
    StartPull,
)

HANDLE = Handle(InstanceRef("p", 3), "host:p", 99, "d")


def _again(name: str, prompt: int = 10, **params) -> Request:
    return replace(request(name, prompt, **params), attempt=2)


def _seen(req: Request, *counts: int | None) -> tuple[SampleState, ...]:
    """Every sample with so many outputs; None: all of them."""
    states = []
    for sample, count in enumerate(counts):
        outputs, finish = expected_outputs(req, 64, sample)
        states.append(
            SampleState(sample, tuple(outputs), finish)
            if count is None
            else SampleState(sample, tuple(outputs[:count]))
        )
    return tuple(states)


def _run_split(req: Request, resumed: tuple[SampleState, ...], **changes) -> Cluster:
    """The request begins again, split over two nodes."""
    cluster = Cluster(config("p", **changes), config("d", **changes))
    cluster.prefill.command(StartPrefill(req, 0, 5.0, resumed))
    cluster.decode.command(ReserveDecode(req, 5.0, resumed))
    cluster.prefill.run()
    (staged,) = cluster.prefill.reports(Staged)
    (pull,) = cluster.decode.command(StartDecode(req.id, staged.handle, req.attempt))
    assert isinstance(pull, StartPull)
    exported = cluster.prefill.exported[staged.handle.key]
    for offset, page in enumerate(pull.pages):
        cluster.decode.device.pages[page] = list(cluster.prefill.device.pages[exported[pull.first_page + offset]])
    (final,) = [m for m in cluster.prefill.messages if isinstance(m, CompleteStaging)]
    assert final.continuation is not None
    cluster.decode.send(Imported(req.id, final.continuation, StageTimes(), req.attempt))
    cluster.decode.run()
    return cluster


def _computed(node: Node) -> int:
    """Tokens that went through the model."""
    return sum(row.length for plan in node.device.plans for row in plan.rows)


@pytest.mark.parametrize("prompt", [1, 8, 10])
def test_a_resumed_prefill_computes_and_stages_the_prompt_and_draws_nothing(prompt):
    req = _again("a", prompt, n=3, prompt_logprobs=2)
    resumed = _seen(req, 2, None, 4)
    node = Node(config(max_num_seqs=1))  # fewer slots than live samples: it needs none
    node.command(StartPrefill(req, 0, 5.0, resumed))
    node.run()
    assert not any(plan.seats or row.draws or row.score for plan in node.device.plans for row in plan.rows)
    assert not any(isinstance(message, Emit) for message in node.messages)
    (final,) = [m for m in node.messages if isinstance(m, CompleteStaging)]
    assert final.continuation == Continuation(req, resumed)
    (told,) = [m for m in node.messages if isinstance(m, EmitPrompt)]
    (done,) = node.reports(PrefillDone)
    assert told.attempt == done.attempt == 2 and not done.finished
    assert done.report.prompt_logprobs == () and done.report.prompt_tokens == prompt
    held = node.core.resources()
    assert held.free_slots == 1 and held.staged_pages == node.config.pages_for(prompt)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("counts", [(1,), (4,), (2, None, 5), (3, 3, 1), (5, 0, 2)])
def test_decoding_goes_on_with_the_very_same_tokens_and_computes_no_prompt(caching, counts):
    req = _again("a", n=len(counts), max_tokens=6)
    cluster = _run_split(req, _seen(req, *counts), prefix_cache=caching, chunk_tokens=4)
    for sample, count in enumerate(counts):
        outputs, finish = expected_outputs(req, 64, sample)
        drawn = cluster.decode.tokens("a", sample)
        assert [token.token for token in drawn] == ([] if count is None else outputs[count:])
        assert {token.attempt for token in drawn} <= {2}
        assert count is None or drawn[-1].finish == finish
    assert [(end.status, end.attempt) for end in cluster.decode.reports(TaskEnded)] == [(Status.OK, 2)]
    if 0 not in counts:  # a sample without outputs needs the prompt's last hidden state
        starts = [row.start for plan in cluster.decode.device.plans for row in plan.rows]
        assert min(starts) == len(req.prompt)
    assert cluster.decode.core.resources().idle


@pytest.mark.parametrize("counts", [(1,), (4,), (2, None, 5), (3, 3, 1), (5, 0, 2)])
def test_a_local_request_goes_on_and_computes_its_prompt_once(counts):
    req = _again("a", n=len(counts), max_tokens=6)
    node = Node(config(chunk_tokens=4, prefix_cache=0 in counts))
    resumed = _seen(req, *counts)
    assert node.command(StartLocal(req, resumed)) == [Report(Accepted("a", 2))]
    node.run()
    for sample, count in enumerate(counts):
        outputs, _ = expected_outputs(req, 64, sample)
        assert [token.token for token in node.tokens("a", sample)] == ([] if count is None else outputs[count:])
    (done,) = node.reports(PrefillDone)
    assert done.attempt == 2 and not done.finished
    live = [count for count in counts if count is not None]
    if 0 not in live:
        assert _computed(node) == len(req.prompt) + sum(5 for _ in live)  # every output but the last is an input once
    assert node.core.resources().idle


@pytest.mark.parametrize("kind", ["prefill", "local"])
def test_a_resumed_task_that_ends_while_its_prompt_is_in_flight_stays_ended(kind):
    req = _again("a")
    resumed = _seen(req, 3)
    node = Node(config())
    node.command(StartPrefill(req, 0, 5.0, resumed) if kind == "prefill" else StartLocal(req, resumed))
    assert node.ready()
    node.command(AbortTask("a", Status.CANCELLED, "gone"))
    assert node.done() == []
    assert node.core.resources().idle and not node.reports(PrefillDone)


def test_penalties_count_what_was_drawn_by_earlier_attempts():
    req = _again("a", presence_penalty=1.0, max_tokens=8)
    node = Node(config())
    node.command(StartLocal(req, _seen(req, 3)))
    node.run()
    assert [token.token for token in node.tokens("a")] == expected_outputs(req, 64)[0][3:]


def test_with_every_sample_ended_a_local_task_ends_at_once_and_a_reservation_with_its_import():
    req = _again("a", n=2)
    resumed = _seen(req, None, None)
    node = Node(config())
    assert node.command(StartLocal(req, resumed)) == [
        Report(Accepted("a", 2)),
        Report(TaskEnded("a", Role.DECODE, Status.OK, attempt=2)),
    ]
    cluster = _run_split(req, resumed)
    assert [(end.status, end.attempt) for end in cluster.decode.reports(TaskEnded)] == [(Status.OK, 2)]
    assert not cluster.decode.device.plans


def test_a_reservation_holds_slots_for_live_samples_and_room_for_their_outputs():
    req = _again("a", 9, n=3, max_tokens=20)
    node = Node(config())
    assert node.command(ReserveDecode(req, 5.0, _seen(req, 8, None, 3))) == [Report(Granted("a", 0, 2))]
    held = node.core.resources()
    assert held.free_slots == 6
    assert held.reserved_pages == 2 + 3 + 2  # shared; (1 + 8 + 1) tokens; (1 + 3 + 1) tokens
    node.command(StartDecode("a", HANDLE, 2))
    node.send(Imported("a", Continuation(req, _seen(req, 8, None, 3)), StageTimes(), 2))
    held = node.core.resources()
    assert held.reserved_pages == 0 and held.sequence_pages == 7, "what was held is used, and no more"


def test_where_all_outputs_never_fit_at_once_samples_wait_for_each_other():
    req = _again("a", 9, n=3, max_tokens=20)
    node = Node(config(num_pages=10))  # 9 usable; 2 are shared, and each sample will need 5 more
    node.command(StartLocal(req, _seen(req, 12, 12, 12)))
    node.run()
    for sample in range(3):
        assert [token.token for token in node.tokens("a", sample)] == expected_outputs(req, 64, sample)[0][12:]
    assert [end.status for end in node.reports(TaskEnded)] == [Status.OK]


def test_what_cannot_be_resumed_here_is_refused_for_good():
    req = _again("a", 10, n=2, max_tokens=None)
    node = Node(config(max_model_len=20))
    for resumed in (_seen(req, 3), _seen(req, 3, 3)[::-1], _seen(req, 3, 10)):
        for command in (StartLocal(req, resumed), ReserveDecode(req, 5.0, resumed)):
            (refused,) = node.command(command)
            assert isinstance(refused, Report) and isinstance(refused.report, Refused)
            assert refused.report.permanent and refused.report.attempt == 2
    assert node.core.resources().idle


def test_a_final_record_of_other_samples_than_were_reserved_for_ends_the_task():
    req = _again("a")
    node = Node(config())
    node.command(ReserveDecode(req, 5.0, _seen(req, 3)))
    node.command(StartDecode("a", HANDLE, 2))
    node.send(Imported("a", Continuation(req, _seen(req, 2)), StageTimes(), 2))
    (ended,) = node.reports(TaskEnded)
    assert ended.status is Status.FAILED_PRECONDITION and "resumed" in ended.reason


def test_commands_and_events_of_another_attempt_are_dropped_and_counted():
    req = _again("a")
    node = Node(config())
    node.command(ReserveDecode(req, 5.0))
    stale = [
        AbortTask("a", Status.CANCELLED, "old", None, 1),
        AbortTask("a", Status.CANCELLED, "old", Role.DECODE, 3),
        AbortTask("unknown", Status.CANCELLED, "old"),
        StartDecode("a", HANDLE, 1),
    ]
    assert [node.command(command) for command in stale] == [[]] * 4
    (pull,) = node.command(StartDecode("a", HANDLE, 2))
    assert isinstance(pull, StartPull) and pull.attempt == 2
    assert node.send(ImportFailed("a", Status.DATA_LOSS, "old", 1)) == []
    assert node.send(Imported("a", Continuation(req, _seen(req, 1)), StageTimes(), 1)) == []
    assert node.core.stale == 6
    assert node.command(AbortTask("a", Status.CANCELLED, "now", None, 2)) == [
        CancelPull("a"),
        Report(TaskEnded("a", Role.DECODE, Status.CANCELLED, "now", attempt=2)),
    ]


def test_a_newer_attempt_ends_what_is_left_of_an_older_one_and_an_older_one_is_refused():
    node = Node(config())
    first = request("a")
    node.command(ReserveDecode(first, 5.0))
    node.command(StartPrefill(first, 0, 5.0))
    answers = node.command(StartLocal(_again("a")))
    ended = [m.report for m in answers if isinstance(m, Report) and isinstance(m.report, TaskEnded)]
    assert {(end.role, end.status, end.attempt) for end in ended} == {
        (Role.PREFILL, Status.UNAVAILABLE, 1),
        (Role.DECODE, Status.UNAVAILABLE, 1),
    }
    assert answers[-1] == Report(Accepted("a", 2))
    (late,) = node.command(StartPrefill(first, 0, 5.0))
    assert isinstance(late, Report) and isinstance(late.report, Refused)
    assert late.report.attempt == 1 and not late.report.permanent
    node.run()
    assert [token.token for token in node.tokens("a")] == expected_outputs(first, 64)[0]


def test_what_is_held_is_declared_with_whether_it_needs_nobody_else():
    node = Node(config())
    node.command(StartLocal(request("local")))
    node.command(StartPrefill(request("prefill"), 0, 5.0))
    node.command(ReserveDecode(_again("decode"), 5.0))
    told = [("local", 1, None, True), ("prefill", 1, Role.PREFILL, False), ("decode", 2, Role.DECODE, False)]
    assert list(node.core.held()) == [HeldTask(node.core.ref, r, a, role, "gw", runs) for r, a, role, runs in told]
    node.command(StartDecode("decode", HANDLE, 2))
    assert not node.core.held()[2].running
    node.send(Imported("decode", Continuation(_again("decode"), _seen(_again("decode"), 1)), StageTimes(), 2))
    assert node.core.held()[2].running


def test_a_resumed_prompts_last_token_finds_a_row_in_a_full_house():
    node = Node(config(max_num_seqs=2, num_pages=40))
    for name in "ab":
        node.command(StartLocal(request(name, 4, max_tokens=30)))
    for _ in range(6):
        node.ready()
        node.done()
    node.command(StartPrefill(_again("c", 1), 0, 50.0, _seen(_again("c", 1), 2)))
    node.run()
    assert len(node.reports(PrefillDone)) == 3
    for name in "ab":
        assert [token.token for token in node.tokens(name)] == expected_outputs(request(name, 4, max_tokens=30), 64)[0]

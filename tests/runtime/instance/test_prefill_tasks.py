"""StartPrefill: the prompt is computed, exported page by page, and staged until the puller is done."""

from __future__ import annotations

from tests.runtime.instance.cluster import Node, config, request
from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.tasks import (
    AbortTask,
    PrefillDone,
    Refused,
    Staged,
    StartLocal,
    StartPrefill,
    TaskEnded,
)
from triptych.runtime.instance.messages import (
    CloseStaging,
    CompleteStaging,
    Emit,
    EmitPrompt,
    LeaseExtended,
    OpenStaging,
    Report,
    StagedReleased,
    Tick,
)


def test_the_prefill_queue_is_bounded():
    node = Node(config(max_waiting=2))
    for name in "abc":
        node.command(StartPrefill(request(name), 0, 5.0))
    (refused,) = node.reports(Refused)
    assert refused.request == "c" and not refused.permanent
    assert [staged.request for staged in node.reports(Staged)] == ["a", "b"]


def test_prefill_answers_with_a_handle_and_opens_the_staging():
    node = Node(config())
    opened, staged = node.command(StartPrefill(request("a", 18), 8, 5.0))
    assert isinstance(staged, Report) and isinstance(staged.report, Staged)
    handle = staged.report.handle
    assert opened == OpenStaging("a", handle.key, 18, first_page=2, pages=3)
    assert (handle.owner, handle.address, handle.digest) == (node.core.ref, "host:i", "d")
    assert 0 <= handle.key < 2**63
    node.run()
    assert sorted(node.exported[handle.key]) == [2, 3, 4]


def test_pages_are_exported_with_the_chunk_that_fills_them_in_whole_granules():
    node = Node(config(chunk_tokens=6, export_pages=2))
    node.command(StartPrefill(request("a", 22), 0, 5.0))
    node.run()
    exports = [[(e.first_page, len(e.pages), e.last) for e in plan.exports] for plan in node.device.plans]
    assert exports == [[], [(0, 2, False)], [(2, 2, False)], [(4, 2, True)]]  # 6, 12, 18 and 22 tokens


def test_cached_pages_are_exported_with_the_first_chunk():
    node = Node(config(chunk_tokens=4, export_pages=1))
    prompt = tuple(range(1, 15))
    node.command(StartLocal(request("warm", prompt, max_tokens=1)))
    node.run()
    before = len(node.device.plans)
    node.command(StartPrefill(request("a", (*prompt[:12], 60, 61, 62, 63, 64)), 4, 5.0))
    node.run()
    exports = [[(e.first_page, e.last) for e in plan.exports] for plan in node.device.plans[before:]]
    assert exports == [[(1, False), (2, False), (3, False)], [(4, True)]]


def test_nothing_left_to_export_sends_no_export():
    node = Node(config())
    opened, _ = node.command(StartPrefill(request("a", 8), 8, 5.0))
    assert isinstance(opened, OpenStaging) and opened.pages == 0
    node.run()
    assert not any(plan.exports for plan in node.device.plans)
    assert any(isinstance(message, CompleteStaging) for message in node.messages)


def test_the_end_of_a_prompt_is_told_in_order():
    node = Node(config())
    node.command(StartPrefill(request("a", 5, n=2), 0, 5.0))
    node.messages.clear()
    node.now = 1.5
    node.run()
    kinds = [type(m.report) if isinstance(m, Report) else type(m) for m in node.messages]
    assert kinds == [Emit, EmitPrompt, PrefillDone, CompleteStaging]
    (done,) = node.reports(PrefillDone)
    assert not done.finished and done.times.queue == 1.5
    held = node.core.resources()
    assert held.staged_pages == 2 and held.free_slots == 8 and held.sequence_pages == 0


def test_staged_pages_are_free_once_released():
    node = Node(config())
    node.command(StartPrefill(request("a"), 0, 5.0))
    node.run()
    (key,) = node.core.resources().staged_keys
    closed, ended = node.send(StagedReleased(key))
    assert closed == CloseStaging(key, Status.OK, "")
    assert ended == Report(TaskEnded("a", Role.PREFILL, Status.OK))
    assert node.core.resources().idle
    assert node.send(StagedReleased(key)) == []


def test_a_puller_that_gives_up_early_does_not_take_the_first_token_from_the_client():
    node = Node(config(chunk_tokens=4))
    node.command(StartPrefill(request("a", 10), 0, 5.0))
    node.ready()
    (key,) = node.core.resources().staged_keys
    assert node.send(StagedReleased(key)) == []
    exported = len(node.exported[key])
    node.run()
    assert len(node.tokens("a")) == 1 and len(node.exported[key]) == exported
    assert [end.status for end in node.reports(TaskEnded)] == [Status.OK]
    assert node.core.resources().idle


def test_a_lease_lasts_as_long_as_the_puller_lives():
    node = Node(config())
    node.command(StartPrefill(request("a"), 0, lease=2.0))
    node.now = 10.0  # the lease begins when the KV is complete, however long that took
    node.run()
    (key,) = node.core.resources().staged_keys
    for _ in range(5):
        node.now += 1.5
        node.send(LeaseExtended(key))
        assert node.send(Tick()) == []
    node.now += 2.0
    closed, ended = node.send(Tick())
    assert isinstance(closed, CloseStaging) and closed.status is Status.UNAVAILABLE
    assert isinstance(ended, Report) and isinstance(ended.report, TaskEnded)
    assert ended.report.status is Status.UNAVAILABLE and "lease" in ended.report.reason
    assert node.core.resources().idle
    assert node.send(LeaseExtended(key)) == []


def test_abort_of_a_prefill_closes_the_staging_first():
    node = Node(config())
    node.command(StartPrefill(request("a"), 0, 5.0))
    node.ready()
    (key,) = node.core.resources().staged_keys
    assert node.command(AbortTask("a", Status.CANCELLED, "gone", Role.PREFILL)) == [
        CloseStaging(key, Status.CANCELLED, "gone"),
        Report(TaskEnded("a", Role.PREFILL, Status.CANCELLED, "gone")),
    ]
    assert node.done() == []  # what was in flight is discarded
    assert node.core.resources().idle

"""What a plan contains, one step ahead of what the host knows."""

from __future__ import annotations

import pytest

from tests.runtime.instance.cluster import Node, config, request
from tests.runtime.instance.fake_device import expected_outputs
from triptych.runtime.core.errors import EngineError, Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.tasks import AbortTask, PrefillDone, StartLocal, StartPrefill, TaskEnded
from triptych.runtime.instance.composer import InvalidCompositionError, PromptsFirst, StepChoice, StepView, TakingTurns
from triptych.runtime.instance.messages import CloseStaging, Report, StepDone
from triptych.runtime.instance.plan import StepPlan, StepResult


def _last(node: Node) -> StepPlan:
    return node.device.plans[-1]


def test_decoding_follows_the_prompt_without_waiting_for_the_first_token():
    node = Node(config())
    node.command(StartLocal(request("a", 9, n=2)))
    assert node.ready() and node.ready()
    prompt, decode = node.device.plans
    assert [len(row.draws) for row in prompt.rows] == [2] and len(prompt.seats) == 2
    assert [(row.tokens, row.start) for row in decode.rows] == [((), 9), ((), 9)]
    assert len(decode.copies) == 1 and not decode.seats  # the second sample's partial page
    assert [row.token_slot for row in decode.rows] == [draw.slot for draw in prompt.rows[0].draws]


def test_never_more_than_two_plans_are_in_flight():
    node = Node(config())
    node.command(StartLocal(request("a")))
    assert [node.ready() for _ in range(4)] == [True, True, False, False]
    node.done()
    assert [node.ready() for _ in range(2)] == [True, False]


def test_a_token_that_is_known_is_sent_and_one_that_is_not_stays_on_the_device():
    node = Node(config())
    node.command(StartLocal(request("a", 4)))
    node.ready()
    node.done()
    node.ready()
    assert _last(node).rows[0].tokens == (expected_outputs(request("a", 4), 64)[0][0],)
    node.ready()
    assert _last(node).rows[0].tokens == ()


def test_a_length_that_is_known_in_advance_wastes_no_row():
    node = Node(config())
    node.command(StartLocal(request("a", 5, max_tokens=4)))
    node.run()
    assert len(node.device.plans) == 4


def test_the_draw_of_a_sample_that_has_ended_is_discarded():
    plain = request("a", 5, max_tokens=9)
    stop = expected_outputs(plain, 64)[0][2]
    node = Node(config())
    node.command(StartLocal(request("a", 5, max_tokens=9, stop_token_ids=(stop,))))
    node.run()
    assert len(node.tokens("a")) == 3 and len(node.device.plans) == 4  # three draws and a zombie
    assert len(node.reports(TaskEnded)) == 1
    assert node.core.resources().idle


def test_pages_and_slot_of_a_zombie_are_reused_at_once_without_harm():
    first = request("a", 4, max_tokens=9)
    stop = expected_outputs(first, 64)[0][0]
    node = Node(config(num_pages=4, max_num_seqs=1, prefix_cache=False))
    node.command(StartLocal(request("a", 4, max_tokens=9, stop_token_ids=(stop,))))
    second = request("b", 4, max_tokens=9)
    node.command(StartLocal(second))
    node.ready()
    node.ready()  # the zombie, which writes into a page of `a`
    node.done()  # `a` ends
    node.ready()
    assert _last(node).rows[0].tokens == second.prompt
    node.run()
    assert [token.token for token in node.tokens("b")] == expected_outputs(second, 64)[0]


def test_decode_rows_do_not_wait_for_a_long_prompt():
    node = Node(config(chunk_tokens=4))
    node.command(StartLocal(request("short", 3, max_tokens=20)))
    node.ready()
    node.command(StartLocal(request("long", 40)))
    for _ in range(6):
        node.done()
        node.ready()
        assert sum(row.length for row in _last(node).rows if not row.decode) <= 4
        assert any(row.decode for row in _last(node).rows)


def test_prompts_share_a_step_first_come_first_served():
    node = Node(config(chunk_tokens=16, max_prefill_rows=3))
    for name, length in (("a", 10), ("b", 9), ("c", 1), ("d", 5)):
        node.command(StartPrefill(request(name, length), 0, 5.0))
    node.ready()
    assert [row.length for row in _last(node).rows] == [10, 6]
    node.ready()
    assert [row.length for row in _last(node).rows] == [3, 1, 5]


def test_no_more_is_admitted_than_the_step_can_start_on():
    node = Node(config(chunk_tokens=8))
    for name in "ab":
        node.command(StartPrefill(request(name, 20), 0, 5.0))
    node.ready()
    assert node.core.resources().sequence_pages == 5  # `b` holds nothing yet


def test_seats_say_what_may_not_be_drawn_yet():
    node = Node(config(eos_ids=(0, 2)))
    node.command(
        StartLocal(request("a", 5, ignore_eos=False, min_tokens=3, stop_token_ids=(9,), frequency_penalty=1.0))
    )
    node.command(StartLocal(request("b", 5, stop_token_ids=(9,))))
    node.ready()
    first, second = _last(node).seats
    assert (first.forbidden, first.forbidden_until, first.prompt) == ((0, 2, 9), 8, request("a", 5).prompt)
    assert (second.forbidden, second.forbidden_until, second.prompt) == ((), 0, ())


def test_a_scored_prompt_that_is_preempted_half_way_is_scored_once():
    node = Node(config(num_pages=10, chunk_tokens=4, prefix_cache=False))
    node.command(StartLocal(request("old", 4, max_tokens=20)))
    for _ in range(3):
        node.ready()
        node.done()
    node.command(StartLocal(request("scored", 24, max_tokens=1, prompt_logprobs=0)))
    node.run()
    done = {report.request: report.report for report in node.reports(PrefillDone)}
    assert len(done["scored"].prompt_logprobs) == 24
    ends = {end.request: end for end in node.reports(TaskEnded)}
    assert ends["scored"].preemptions >= 1 and ends["scored"].status is Status.OK


def test_a_preempted_prompt_does_not_count_its_own_pages_as_cached():
    node = Node(config(num_pages=10, chunk_tokens=4))
    node.command(StartLocal(request("old", 4, max_tokens=20)))
    for _ in range(3):
        node.ready()
        node.done()
    node.command(StartLocal(request("new", 24, max_tokens=1)))
    node.run()
    assert {end.request: end.preemptions > 0 for end in node.reports(TaskEnded)} == {"old": False, "new": True}
    assert [report.report.cached_tokens for report in node.reports(PrefillDone)] == [0, 0]


def test_results_in_the_wrong_order_or_shape_are_an_engine_error_and_change_nothing():
    node = Node(config())
    node.command(StartLocal(request("a")))
    node.ready()
    node.ready()
    first, second = node.results
    before = node.core.resources()
    for wrong in (second, StepResult(first.id, ()), StepResult(first.id, (*second.rows, *first.rows))):
        with pytest.raises(EngineError):
            node.core.handle(StepDone(wrong), 0.0)
        assert node.core.resources() == before
    node.run()
    assert len(node.tokens("a")) == 6


def test_reset_ends_everything_and_begins_a_new_epoch():
    node = Node(config())
    node.command(StartLocal(request("a")))
    node.command(StartPrefill(request("b"), 0, 5.0))
    node.ready()
    stale = node.results.popleft()
    messages = node.core.reset(InstanceRef("i", 8), status=Status.INTERNAL, reason="device lost")
    ends = [m.report for m in messages if isinstance(m, Report)]
    assert [(end.request, end.status, end.reason) for end in ends if isinstance(end, TaskEnded)] == [
        ("a", Status.INTERNAL, "device lost"),
        ("b", Status.INTERNAL, "device lost"),
    ]
    assert sum(isinstance(message, CloseStaging) for message in messages) == 1
    assert node.core.ref.epoch == 8
    held = node.core.resources()
    assert held.idle and held.cached_pages == 0 and held.in_flight == 0
    assert node.core.handle(StepDone(stale), 0.0) == []
    node.command(StartLocal(request("c")))
    node.ready()
    assert _last(node).id == stale.id + 1
    assert node.core.handle(StepDone(stale), 0.0) == []
    node.run()
    assert len(node.tokens("c")) == 6


def test_load_tells_what_is_busy():
    node = Node(config(max_prefill_rows=1, chunk_tokens=4))
    node.command(StartLocal(request("a", 10)))
    node.command(StartPrefill(request("b", 7), 0, 5.0))
    node.ready()
    load = node.core.load()
    assert (load.running, load.waiting, load.waiting_tokens, load.free_slots, load.staged) == (1, 1, 7, 7, 1)
    assert load.free_pages == 63 - 3


def test_a_composer_may_hold_work_back_but_not_exceed_the_limits():
    class Late:
        """No prefill beside decodes; and never more than one decode."""

        shortest_first = False

        def compose(self, view: StepView) -> StepChoice:
            if view.decodes:
                return StepChoice(1, (0,) * len(view.chunks))
            return StepChoice(0, tuple(candidate.tokens for candidate in view.chunks))

    node = Node(config(chunk_tokens=64), composer=Late())
    for name in "ab":
        node.command(StartLocal(request(name, 9, n=2)))
    node.run()
    for name in "ab":
        for sample in range(2):
            outputs = [token.token for token in node.tokens(name, sample)]
            assert outputs == expected_outputs(request(name, 9, n=2), 64, sample)[0]
    assert all(len(plan.rows) == 1 for plan in node.device.plans if plan.rows[0].decode)

    class Greedy:
        shortest_first = False

        def compose(self, view: StepView) -> StepChoice:
            return StepChoice(view.decodes, tuple(candidate.tokens for candidate in view.chunks))

    node = Node(config(chunk_tokens=4), composer=Greedy())
    node.command(StartLocal(request("a", 9)))
    with pytest.raises(InvalidCompositionError):
        node.ready()
    node.core.audit()


def test_decodes_sit_out_the_steps_that_prompts_fill():
    node = Node(config(chunk_tokens=16), composer=PromptsFirst())
    for name in "abc":
        node.command(StartLocal(request(name, 25)))
    node.run()
    for name in "abc":
        assert [token.token for token in node.tokens(name)] == expected_outputs(request(name, 25), 64)[0]
    steps = [
        (sum(len(row.tokens) for row in plan.rows if not row.decode), any(row.decode for row in plan.rows))
        for plan in node.device.plans
    ]
    assert all(tokens < 12 for tokens, decodes in steps if decodes)
    assert any(tokens and decodes for tokens, decodes in steps), "what does not fill a step keeps decodes waiting"
    assert [tokens for tokens, _ in steps][:4] == [16, 16, 16, 16]


def test_taking_turns_never_mixes_and_a_share_bounds_the_prefill_step():
    node = Node(config(chunk_tokens=16), composer=TakingTurns())
    node.core.set_share(5)
    assert node.core.load().share == 5
    for name in "abc":
        node.command(StartLocal(request(name, 25)))
    node.run()
    for name in "abc":
        assert [token.token for token in node.tokens(name)] == expected_outputs(request(name, 25), 64)[0]
    kinds = [{row.decode for row in plan.rows} for plan in node.device.plans]
    assert all(len(kind) == 1 for kind in kinds), "a step held both"
    prefills = [sum(len(row.tokens) for row in plan.rows) for plan in node.device.plans if not plan.rows[0].decode]
    assert max(prefills) == 5
    first = next(i for i, kind in enumerate(kinds) if kind == {True})
    turns = kinds[first : first + 6]
    assert turns == [{True}, {False}] * 3
    node.core.set_share(0)
    assert node.core.load().share == 1
    node.core.set_share(10**6)
    assert node.core.load().share == 16


def test_timers_of_ended_tasks_do_not_pile_up():
    node = Node(config())
    for index in range(1000):
        node.command(StartLocal(request(f"r{index}", deadline=1e9)))
        node.command(AbortTask(f"r{index}", Status.CANCELLED, ""))
    assert len(node.core._state.timers) < 200

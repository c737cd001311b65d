"""Guesses change how many steps it takes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.runtime.instance.attending import check_rest, import_kv, reserve
from tests.runtime.instance.cluster import Cluster, Node, config, request
from tests.runtime.instance.drafters import Knowing, half_right, knowing
from tests.runtime.instance.fake_device import expected_outputs
from tests.runtime.instance.guessing import LOOKED_UP, guessing, settle_well
from tests.runtime.instance.media import asked, assert_free, feed, heard, media_config, pulled
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.core.instance import Role
from triptych.runtime.core.request import FinishReason
from triptych.runtime.core.tasks import AbortTask, StartLocal, TaskEnded
from triptych.runtime.instance import drafting
from triptych.runtime.instance.messages import Emit
from triptych.runtime.instance.ngram import NgramDrafter
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.instance.speculation import FIRST_RATE, PASSED_OVER, Lookahead, Speculation, most_draws


def test_what_cannot_be_guessed_is_refused() -> None:
    with pytest.raises(ConfigError, match="speculative tokens are 0"):
        Speculation(0)
    with pytest.raises(ConfigError, match="n-grams of 3 to 2"):
        Speculation(4, longest=2, shortest=3)


def test_rows_grow_with_guesses_up_to_what_a_step_can_hide() -> None:
    assert [most_draws(8, guesses) for guesses in (0, 1, 4)] == [8, 16, 40]
    assert most_draws(128, 4) == 256 and most_draws(512, 4) == most_draws(512, 0) == 512


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("drafter", [knowing(), half_right, knowing(lambda position: True)])
def test_several_requests_get_the_tokens_of_plain_decoding(split, drafter) -> None:
    cluster = Cluster(config("p"), guessing(LOOKED_UP), drafter=drafter)
    for index in range(4):
        cluster.submit(request(f"r{index}", 3 + index, max_tokens=11 + index, n=1 + index % 2), split=split)
    settle_well(cluster)


def steps_of(node: Node) -> int:
    node.run()
    return node.device.last_plan


def test_right_guesses_save_steps() -> None:
    plain, fast = Node(config()), Node(guessing(LOOKED_UP), drafter=knowing())
    for node in (plain, fast):
        node.command(StartLocal(request("a", max_tokens=30)))
    assert steps_of(plain) == 30
    assert steps_of(fast) <= 10
    assert [t.token for t in fast.tokens("a")] == expected_outputs(request("a", max_tokens=30), 64)[0]
    counts = fast.core.speculated
    assert counts.accepted == counts.drafted == 30 - fast.device.last_plan


def test_wrong_guesses_are_given_up() -> None:
    node = Node(guessing(LOOKED_UP), drafter=knowing(lambda position: True))
    node.command(StartLocal(request("a", max_tokens=40)))
    assert steps_of(node) == 40
    counts = node.core.speculated
    assert counts.accepted == 0 and 1 <= counts.verifications <= 14
    assert [t.token for t in node.tokens("a")] == expected_outputs(request("a", max_tokens=40), 64)[0]


def has_guesses(plan: StepPlan) -> bool:
    return len(plan.rows) > len({row.sequence for row in plan.rows})


def first_verification(node: Node) -> None:
    """Run until a plan with guesses is the newest in flight."""
    for _ in range(100):
        planned = node.ready()
        if planned and has_guesses(node.device.plans[-1]):
            return
        if len(node.results) == 2 or not planned:
            node.done()
    raise AssertionError("nothing was guessed")


def test_plain_steps_run_into_a_verifying_one_and_nothing_is_planned_behind_it() -> None:
    node = Node(guessing(LOOKED_UP), drafter=knowing())
    for name in ("a", "b"):
        node.command(StartLocal(request(name, max_tokens=20)))
    first_verification(node)
    assert len(node.results) == 2 and not node.device.plans[-1].rows[0].tokens, "the plan before was not read yet"
    node.done()
    assert not node.ready()
    node.done()
    assert node.ready()


@pytest.mark.parametrize("max_tokens", range(2, 12))
def test_max_tokens_is_never_passed(max_tokens: int) -> None:
    node = Node(guessing(LOOKED_UP), drafter=knowing())
    req = request("a", max_tokens=max_tokens)
    node.command(StartLocal(req))
    node.run()
    tokens = node.tokens("a")
    assert [t.token for t in tokens] == expected_outputs(req, 64)[0] and len(tokens) == max_tokens
    assert [t.finish is not None for t in tokens] == [False] * (max_tokens - 1) + [True]
    assert all(draw.position < 10 + max_tokens for p in node.device.plans for r in p.rows for draw in r.draws)


def test_the_models_context_is_never_passed() -> None:
    node = Node(guessing(LOOKED_UP, max_model_len=24), drafter=knowing())
    node.command(StartLocal(request("a", max_tokens=None)))
    node.run()
    assert len(node.tokens("a")) == 14
    assert max(len(row.pages) for plan in node.device.plans for row in plan.rows) <= 6


@pytest.mark.parametrize("how", ["stop", "stop_token_ids"])
@pytest.mark.parametrize("at", range(1, 12))
def test_a_stop_inside_a_right_run_ends_the_sample_there(how: str, at: int) -> None:
    outputs, _ = expected_outputs(request("a", max_tokens=12), 64)
    stop = outputs[at]
    asked: dict[str, Any] = {"stop": (f"<{stop}>",)} if how == "stop" else {"stop_token_ids": (stop,)}
    node = Node(guessing(LOOKED_UP), drafter=knowing())
    req = request("a", max_tokens=12, **asked)
    node.command(StartLocal(req))
    node.run()
    tokens = node.tokens("a")
    assert [t.token for t in tokens] == outputs[: outputs.index(stop) + 1]
    assert tokens[-1].finish is not None and tokens[-1].finish.reason is FinishReason.STOP
    assert node.core.resources().idle


def test_min_tokens_and_logprobs_are_those_of_each_position() -> None:
    node = Node(guessing(LOOKED_UP), drafter=knowing())
    req = request("a", max_tokens=20, min_tokens=15, stop_token_ids=tuple(range(1, 60)), logprobs=0)
    node.command(StartLocal(req))
    node.run()
    tokens = node.tokens("a")
    assert [t.token for t in tokens] == expected_outputs(req, 64)[0]
    assert all(t.logprobs is not None for t in tokens)
    assert node.core.speculated.accepted > 0


def test_penalised_samples_are_not_guessed_for() -> None:
    node = Node(guessing(LOOKED_UP), drafter=knowing())
    node.command(StartLocal(request("a", max_tokens=12, presence_penalty=1.0)))
    assert steps_of(node) == 12
    assert node.core.speculated.drafted == 0


def test_guesses_attend_to_what_their_sequence_attends_to() -> None:
    node = Node(media_config("d", "D", speculation=LOOKED_UP), drafter=knowing())
    req = asked("c", heard("s"), n=2, max_tokens=12)
    reserve(node, req)
    (pull,) = feed(node, req, 0)
    pulled(node, req, pull, "s")
    import_kv(node, req)
    node.run()
    check_rest(node, req)
    assert node.core.speculated.accepted > 0
    assert_free(node)


def test_tokens_of_one_step_come_in_order_in_one_message() -> None:
    node = Node(guessing(LOOKED_UP), drafter=knowing())
    node.command(StartLocal(request("a", max_tokens=20)))
    node.run()
    emitted = [[t.position for t in m.tokens] for m in node.messages if isinstance(m, Emit)]
    assert [p for positions in emitted for p in positions] == list(range(10, 30))
    assert max(len(positions) for positions in emitted) == 5


@pytest.mark.parametrize("pages", [9, 10, 12, 15])
@pytest.mark.parametrize("drafter", [knowing(), half_right])
def test_guesses_in_a_tiny_pool_change_no_token(pages, drafter) -> None:
    ends = []
    for speculation in (None, LOOKED_UP):
        cluster = Cluster(config("p"), config("d", num_pages=pages, speculation=speculation), drafter=drafter)
        for index in range(5):
            cluster.submit(request(f"r{index}", 3 + index, max_tokens=12), split=False)
        settle_well(cluster)
        ends.append(sum(journal.ended[Role.DECODE].preemptions for journal in cluster.journals.values()))
    assert ends[0] > 0 or pages > 10


def test_an_abort_while_guesses_are_verified_frees_everything_and_emits_nothing_more() -> None:
    node = Node(guessing(LOOKED_UP), drafter=knowing())
    for name in ("a", "b"):
        node.command(StartLocal(request(name, max_tokens=20)))
    first_verification(node)
    known = len(node.tokens("a"))
    node.command(AbortTask("a", Status.CANCELLED, "gone"))
    node.run()
    assert len(node.tokens("a")) == known
    assert [t.token for t in node.tokens("b")] == expected_outputs(request("b", max_tokens=20), 64)[0]
    assert node.core.resources().idle and len(node.reports(TaskEnded)) == 2


def test_pages_of_wrong_guesses_are_freed_and_never_cached() -> None:
    wrong = Node(guessing(LOOKED_UP, page_size=4), drafter=knowing(lambda position: True))
    plain = Node(config("d"))
    for node in (wrong, plain):
        node.command(StartLocal(request("a", 7, max_tokens=8)))
    first_verification(wrong)
    held = wrong.core.resources().sequence_pages
    while wrong.results:
        wrong.done()
    (stream,) = wrong.core.state.running
    assert stream.sequence is not None
    tokens = len(stream.sequence.tokens)
    assert wrong.core.resources().sequence_pages == -(-tokens // 4) <= held
    assert stream.sequence.scheduled == stream.sequence.committed == tokens - 1
    wrong.run()
    plain.run()
    assert wrong.core.resources() == replace(plain.core.resources(), in_flight=0)


def test_steps_with_prompt_chunks_stay_within_their_programs() -> None:
    node = Node(guessing(LOOKED_UP, max_num_seqs=4, chunk_tokens=4), drafter=knowing())
    node.command(StartLocal(request("a", 4, max_tokens=40)))
    for index in range(3):
        first_verification(node)
        node.command(StartLocal(request(f"b{index}", 17, max_tokens=3)))
    node.run()  # the fake device checks the shapes
    mixed = [plan for plan in node.device.plans if any(not row.decode for row in plan.rows)]
    assert any(has_guesses(plan) for plan in mixed)
    assert [t.token for t in node.tokens("a")] == expected_outputs(request("a", 4, max_tokens=40), 64)[0]


def test_without_the_option_plans_are_those_of_ever_and_nobody_is_asked() -> None:
    def never(request, sample):
        raise AssertionError("a drafter was asked for")

    node = Node(config(), drafter=never)
    node.command(StartLocal(request("a", (1, 2, 3) * 4, max_tokens=12)))
    assert steps_of(node) == 12
    assert all(len(plan.rows) == 1 for plan in node.device.plans)


def test_one_guessing_sample_does_not_hold_up_many_that_are_not() -> None:
    def only_a(req, sample):
        return knowing()(req, sample) if req.id == "a" else Silent(req, sample, lambda position: False)

    class Silent(Knowing):
        def propose(self, tokens, count):
            return []

    def accepted(others: int) -> int:
        node = Node(guessing(LOOKED_UP, num_pages=200, max_num_seqs=24, max_waiting=99), drafter=only_a)
        for index in range(others):
            node.command(StartLocal(request(f"b{index}", 4, max_tokens=30)))
        node.command(StartLocal(request("a", 4, max_tokens=8)))
        node.run()
        return node.core.speculated.accepted

    assert accepted(2) > 0 == accepted(20)


def test_prompts_of_a_burst_are_indexed_over_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drafters together take notice of so many tokens before a step: everybody waits for that."""
    monkeypatch.setattr(drafting, "LEARNED", 20)
    learned: list[int] = []

    class Counting(NgramDrafter):
        def learn(self, tokens, most):
            learned.append(super().learn(tokens, most))
            return learned[-1]

    node = Node(guessing(LOOKED_UP, num_pages=99, max_num_seqs=4), drafter=lambda request, sample: Counting(2, 1))
    for name in "abcd":
        node.command(StartLocal(request(name, 17, max_tokens=12)))
    while not node.core.resources().idle:
        before = len(learned)
        if node.ready():
            assert sum(learned[before:]) <= 20
        if node.results:
            node.done()
    assert sum(learned) > 4 * 17, "nobody is forgotten"
    assert [t.token for t in node.tokens("d")] == expected_outputs(request("d", 17, max_tokens=12), 64)[0]


def test_depth_follows_what_was_right() -> None:
    ahead = Lookahead(knowing()(request("a"), 0))
    assert ahead.rate == FIRST_RATE and ahead.depth(8) == 2 and ahead.depth(1) == 1 and ahead.depth(0) == 0
    for _ in range(20):
        ahead.observe(4, 4)
    assert ahead.depth(8) == 8 and ahead.expected(8) > 7
    while ahead.depth(8):
        ahead.observe(8, 0)
    assert [ahead.depth(8) for _ in range(PASSED_OVER - 1)] == [0] * (PASSED_OVER - 2) + [1]

"""A draft model guesses: it reads what it lacks first, and changes how many steps it takes, and nothing else. The fake device checks what the model has read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.runtime.instance.cluster import Cluster, Node, config, request
from tests.runtime.instance.fake_device import expected_outputs
from tests.runtime.instance.guessing import BY_MODEL, guessing, settle_well
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.tasks import StartLocal, TaskEnded
from triptych.runtime.instance.plan import StepPlan

WRONG_AT: dict[str, Callable[[int], bool]] = {
    "right": lambda position: False,
    "wrong at times": lambda position: position % 3 == 0,
    "wrong": lambda position: True,
}


def assert_expected(node: Node, *requests) -> None:
    for req in requests:
        for sample in range(req.sampling.n):
            assert [t.token for t in node.tokens(req.id, sample)] == expected_outputs(req, 64, sample)[0]
    assert node.core.resources().idle


def drafts_of(node: Node) -> list[StepPlan]:
    return [plan for plan in node.device.plans if plan.drafts]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("pages", [64, 20])
@pytest.mark.parametrize("wrong", WRONG_AT)
def test_several_requests_get_the_tokens_of_plain_decoding(split: bool, pages: int, wrong: str) -> None:
    cluster = Cluster(config("p"), guessing(BY_MODEL, num_pages=pages))
    cluster.decode.device.draft.wrong = WRONG_AT[wrong]
    for index in range(4):
        cluster.submit(request(f"r{index}", 3 + 5 * index, max_tokens=11 + index, n=1 + index % 2), split=split)
    settle_well(cluster)


@pytest.mark.parametrize("wrong", WRONG_AT)
def test_what_is_preempted_is_read_again(wrong: str) -> None:
    node = Node(guessing(BY_MODEL, num_pages=12))
    node.device.draft.wrong = WRONG_AT[wrong]
    requests = [request(name, 6, max_tokens=24) for name in "abc"]
    for req in requests:
        node.command(StartLocal(req))
    node.run()
    assert_expected(node, *requests)
    assert sum(ended.preemptions for ended in node.reports(TaskEnded)) > 0
    assert node.core.speculated.drafted > 0


def test_right_guesses_save_steps_and_none_is_wasted() -> None:
    node, req = Node(guessing(BY_MODEL)), request("a", max_tokens=50)
    node.command(StartLocal(req))
    node.run()
    assert_expected(node, req)
    counts = node.core.speculated
    assert node.device.last_plan <= 13 and counts.accepted == counts.drafted == 50 - node.device.last_plan


def test_a_prompt_is_read_once_and_then_nothing_but_what_is_new() -> None:
    """After guesses that were all right the draft model lacks the last two tokens, which it takes with the next draft."""
    node, req = Node(guessing(BY_MODEL)), request("a", 21, max_tokens=30)
    node.command(StartLocal(req))
    node.run()
    assert_expected(node, req)
    # All but the last token of the prompt is behind before the first draft, and a chunk is 16.
    assert [sum(row.length for row in plan.catch_ups) for plan in node.device.plans if plan.catch_ups] == [16, 5]
    assert len(drafts_of(node)) == node.core.speculated.verifications


def test_a_token_that_is_still_being_drawn_is_taken_on_the_device() -> None:
    node, req = Node(guessing(BY_MODEL)), request("a", max_tokens=20)
    node.command(StartLocal(req))
    node.run()
    first = drafts_of(node)[0]
    assert len(first.drafts[0].tokens) == 1 and not first.rows[0].tokens
    assert [row.guess for row in first.rows] == list(range(first.drafts[0].count + 1))
    assert_expected(node, req)


def test_wrong_guesses_are_given_up_and_tried_again_later() -> None:
    node, req = Node(guessing(BY_MODEL)), request("a", max_tokens=50)
    node.device.draft.wrong = WRONG_AT["wrong"]
    node.command(StartLocal(req))
    node.run()
    assert_expected(node, req)
    counts = node.core.speculated
    assert node.device.last_plan == 50 and counts.accepted == 0 and 1 <= counts.verifications <= 14
    caught_up = [plan for plan in node.device.plans if plan.catch_ups]
    assert len(caught_up) >= 2, "it reads again what was decoded without it"


def test_penalised_samples_are_not_guessed_for_and_nothing_is_read_of_them() -> None:
    node, req = Node(guessing(BY_MODEL)), request("a", max_tokens=12, presence_penalty=1.0)
    node.command(StartLocal(req))
    node.run()
    assert_expected(node, req)
    assert node.core.speculated.drafted == node.device.draft.read == 0


@pytest.mark.parametrize("at", range(1, 12))
def test_a_stop_inside_a_right_run_ends_the_sample_there(at: int) -> None:
    outputs, _ = expected_outputs(request("a", max_tokens=12), 64)
    req = request("a", max_tokens=12, stop_token_ids=(outputs[at],))
    node = Node(guessing(BY_MODEL))
    node.command(StartLocal(req))
    node.run()
    assert_expected(node, req)


@pytest.mark.parametrize("max_model_len", range(12, 26, 3))
def test_the_models_context_is_never_passed(max_model_len: int) -> None:
    node = Node(guessing(BY_MODEL, max_model_len=max_model_len))
    req = request("a", max_tokens=None)
    node.command(StartLocal(req))
    node.run()
    assert [t.token for t in node.tokens("a")] == expected_outputs(req, max_model_len)[0]


@pytest.mark.parametrize("count", [6, 24])
def test_many_prompts_are_read_in_turns_and_soon_nearly_all_are_guessed_for(count: int) -> None:
    """A program of the draft model reads three of them in a step, and who was read stays so. Of 24 the first have ended when the last are read."""
    requests = [request(f"r{index}", 8, max_tokens=50) for index in range(count)]
    node = Node(guessing(BY_MODEL, num_pages=600, max_num_seqs=count, max_waiting=99, chunk_tokens=64))
    for req in requests:
        node.command(StartLocal(req))
    node.run()  # the fake draft model checks the shapes
    assert_expected(node, *requests)
    assert max(len(plan.drafts) for plan in node.device.plans) >= 0.8 * count
    assert node.device.last_plan < 40


def test_of_a_cached_prefix_only_what_the_draft_model_never_read_is_read() -> None:
    node, prompt, read = Node(guessing(BY_MODEL)), tuple(range(1, 22)), list[int]()
    for name, penalty in (("a", 1.0), ("b", 0.0), ("c", 0.0)):
        req = request(name, prompt, max_tokens=16, presence_penalty=penalty)
        node.command(StartLocal(req))
        node.run()
        assert_expected(node, req)
        read.append(node.device.draft.read)
    assert read[0] == 0, "it is not guessed for"
    assert read[1] >= 20 and read[2] - read[1] <= 4, "pages of 4 tokens"
    assert node.core.speculated.accepted > 16


def test_pages_that_are_given_to_others_do_not_count_as_read() -> None:
    """Those of the first request go to the third, which nobody guesses for, and the last finds its prompt in them; the second takes the one that was never full."""
    node, prompt = Node(guessing(BY_MODEL, num_pages=11)), tuple(range(1, 22))
    requests = [
        request("a", 21, max_tokens=20),
        request("b", 4, max_tokens=2, presence_penalty=1.0),
        request("c", prompt, max_tokens=20, presence_penalty=1.0),
        request("d", prompt, max_tokens=20),
    ]
    for req in requests:
        node.command(StartLocal(req))
        node.run()  # the fake draft model says what it lacks
        assert_expected(node, req)
    assert node.core.speculated.accepted > 0


def test_after_a_reset_the_draft_model_has_read_nothing() -> None:
    node, req = Node(guessing(BY_MODEL)), request("a", max_tokens=30)
    node.command(StartLocal(req))
    for _ in range(6):
        node.ready()
        node.done()
    before = node.device.draft.read
    node.core.reset(InstanceRef("d", 8))
    node.results.clear()
    other = request("b", max_tokens=10)
    node.command(StartLocal(other))
    node.run()
    assert node.device.draft.read >= before + 9
    assert_expected(node, other)

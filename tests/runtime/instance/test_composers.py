"""What composers choose, as numbers, and that every choice keeps to the limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.instance.cluster import Node, config, request
from tests.runtime.instance.fake_device import expected_outputs
from triptych.runtime.core.tasks import StartLocal
from triptych.runtime.instance.composer import (
    COMPOSERS,
    ChunkCandidate,
    DefaultComposer,
    ShortestFirst,
    StepLimits,
    StepView,
)


def view(*tokens: int, chunk: int = 100, rows: int = 4, slots: int = 8, decodes: int = 0) -> StepView:
    chunks = tuple(ChunkCandidate(n, False, 0.0) for n in tokens)
    return StepView(decodes, chunks, StepLimits(slots, chunk, rows))


@pytest.mark.parametrize(
    ("waiting", "chosen"),
    [
        ((300,), (100,)),
        ((300, 20), (80, 20)),
        ((300, 80, 20), (50, 30, 20)),
        ((300, 20, 80), (50, 20, 30)),
        ((10, 300, 40), (10, 50, 40)),
        ((300, 5, 6, 7, 8), (82, 5, 6, 7, 0)),
        ((300, 1, 200), (50, 1, 50)),
        ((1, 300, 200), (1, 50, 50)),
        ((1, 1), (1, 1)),
        ((), ()),
    ],
)
def test_half_of_a_step_is_for_the_oldest_prompt_and_the_rest_for_the_shortest(
    waiting: tuple[int, ...], chosen: tuple[int, ...]
) -> None:
    assert ShortestFirst().compose(view(*waiting)).chunks == chosen


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_tiny_chunk_still_goes_to_the_oldest(chunk: int) -> None:
    at = view(50, 40, 30, chunk=chunk, slots=1, decodes=1)
    choice = ShortestFirst().compose(at)
    at.check(choice)
    assert choice.chunks[0] >= 1


CANDIDATES = st.lists(
    st.builds(ChunkCandidate, st.integers(1, 40), st.booleans(), st.just(0.0), st.booleans()), max_size=8
)


@pytest.mark.parametrize("name", sorted(COMPOSERS))
@given(
    chunks=CANDIDATES,
    chunk=st.integers(1, 60),
    rows=st.integers(1, 4),
    slots=st.integers(1, 9),
    decodes=st.integers(0, 9),
)
def test_every_choice_keeps_to_the_limits(
    name: str, chunks: list[ChunkCandidate], chunk: int, rows: int, slots: int, decodes: int
) -> None:
    at = StepView(decodes, chunks, StepLimits(slots, chunk, rows))
    choice = COMPOSERS[name]().compose(at)
    at.check(choice)
    assert any(choice.chunks) or choice.decodes or not (chunks or decodes), "a step that does nothing is for ever"


@given(tokens=st.lists(st.integers(2, 400), min_size=1, max_size=4), chunk=st.integers(4, 200))
def test_a_step_holds_as_many_prompt_tokens_as_in_order(tokens: list[int], chunk: int) -> None:
    at = view(*tokens, chunk=chunk)
    assert sum(ShortestFirst().compose(at).chunks) >= sum(DefaultComposer().compose(at).chunks)


def order_of_first_tokens(node: Node, names: list[str]) -> list[str]:
    """By the step that draws them; within a step as it has them."""
    drawn = [row.sequence for plan in node.device.plans for row in plan.rows if row.draws]
    return [names[number - 1] for number in dict.fromkeys(drawn)]


def test_short_prompts_overtake_and_the_oldest_one_ends_in_twice_its_time() -> None:
    names = ["long", "also long", *(f"short {number}" for number in range(6))]
    lengths = [60, 50, 4, 3, 4, 3, 4, 3]
    firsts = {}
    for composer in (DefaultComposer(), ShortestFirst()):
        node = Node(config(chunk_tokens=8, num_pages=256), composer=composer)
        for name, length in zip(names, lengths, strict=True):
            node.command(StartLocal(request(name, length, max_tokens=2)))
        node.run()
        node.core.audit()
        for name, length in zip(names, lengths, strict=True):
            assert node.tokens(name)[0].token == expected_outputs(request(name, length, max_tokens=2), 64)[0][0]
        firsts[type(composer)] = order_of_first_tokens(node, names)
        begun = [any(row.sequence == 1 and len(row.tokens) > 1 for row in plan.rows) for plan in node.device.plans]
        assert sum(begun) <= 2 * -(-60 // 8)
    assert firsts[DefaultComposer] == names
    assert set(firsts[ShortestFirst][:6]) == set(names[2:]) and firsts[ShortestFirst][6:] == ["long", "also long"]


def test_a_long_prompt_is_not_starved_by_short_ones_that_keep_coming() -> None:
    node = Node(config(chunk_tokens=8, num_pages=256), composer=ShortestFirst())
    for number in range(3):
        node.command(StartLocal(request(f"first {number}", 6, max_tokens=1)))
    node.command(StartLocal(request("long", 40, max_tokens=1)))
    steps = 0
    while not node.tokens("long"):
        if steps % 2 == 0:
            node.command(StartLocal(request(f"more {steps}", 8, max_tokens=1)))
        node.ready()
        node.done()
        steps += 1
        assert steps < 40, "it waits for ever"


@pytest.mark.parametrize(("rows", "longs"), [(4, 3), (4, 4), (4, 6), (3, 5), (2, 3)])
def test_long_prompts_do_not_take_every_row(rows: int, longs: int) -> None:
    node = Node(config(chunk_tokens=8, max_prefill_rows=rows, num_pages=256), composer=ShortestFirst())
    for number in range(longs):
        node.command(StartLocal(request(f"long {number}", 60, max_tokens=1)))
    for _ in range(3):
        node.ready()
        node.done()
    node.command(StartLocal(request("short", 4, max_tokens=1)))
    steps = 0
    while not node.tokens("short"):
        node.ready()
        node.done()
        steps += 1
        assert steps < 5, "it waits for long ones"
    node.run()
    node.core.audit()


def test_one_row_is_first_come_first_served() -> None:
    node = Node(config(chunk_tokens=8, max_prefill_rows=1, num_pages=256), composer=ShortestFirst())
    names = ["long", "also long", "short"]
    for name, length in zip(names, [30, 20, 3], strict=True):
        node.command(StartLocal(request(name, length, max_tokens=1)))
    node.run()
    assert order_of_first_tokens(node, names) == names

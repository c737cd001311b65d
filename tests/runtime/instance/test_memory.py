"""Pages, prefix index, sequences and slots, one rule each."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.runtime.instance.cluster import config
from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.instance.memory import KvMemory
from triptych.runtime.instance.pages import NULL_PAGE, OutOfPagesError, PagePool
from triptych.runtime.instance.prefix import PrefixIndex, page_key, root_key
from triptych.runtime.instance.sequence import Sequence
from triptych.runtime.instance.slots import SlotPool


def _memory(**changes: Any) -> KvMemory:
    sizes: dict[str, Any] = {"num_pages": 12, "page_size": 4}
    return KvMemory(config(**sizes | changes))


def _sequence(memory: KvMemory, tokens, salt: str = "") -> Sequence:
    return Sequence(memory, list(tokens), memory.roots(salt))


def _computed(memory: KvMemory, tokens) -> Sequence:
    sequence = _sequence(memory, tokens)
    sequence.reserve(len(sequence.tokens))
    sequence.scheduled = len(sequence.tokens)
    sequence.commit(sequence.scheduled)
    return sequence


def test_the_null_page_is_never_given_out():
    pool = PagePool(5, PrefixIndex())
    assert NULL_PAGE not in pool.allocate(4)
    with pytest.raises(OutOfPagesError) as raised:
        pool.allocate(1)
    assert raised.value.status is Status.RESOURCE_EXHAUSTED


def test_allocation_is_all_or_nothing():
    pool = PagePool(5, PrefixIndex())
    with pytest.raises(OutOfPagesError):
        pool.allocate(5)
    assert pool.free == 4


def test_a_shared_page_is_free_after_its_last_release_and_not_before():
    pool = PagePool(3, PrefixIndex())
    pages = pool.allocate(1)
    pool.share(pages)
    pool.release(pages)
    assert pool.free == 1
    pool.release(pages)
    assert pool.free == 2
    with pytest.raises(AssertionError):
        pool.release(pages)


def test_free_pages_are_used_before_cached_ones_and_those_oldest_first_tail_before_head():
    memory = _memory(num_pages=8)
    old, new = _computed(memory, range(8)), _computed(memory, range(50, 58))
    old_pages, new_pages = old.pages, new.pages
    old.evict()
    new.evict()
    assert (memory.pool.free, memory.pool.cached, memory.pool.available) == (3, 4, 7)
    assert not set(memory.pool.allocate(3)) & {*old_pages, *new_pages}
    assert memory.pool.allocate(4) == [old_pages[1], old_pages[0], new_pages[1], new_pages[0]]
    assert len(memory.index) == 0


def test_using_a_cached_page_makes_it_young():
    memory = _memory(num_pages=5)
    first, second = _computed(memory, range(4)), _computed(memory, range(10, 14))
    first_page, second_page = first.pages[0], second.pages[0]
    first.evict()
    second.evict()
    again = _sequence(memory, range(4))
    assert again.pin_prefix(4) == 4 and again.pages == (first_page,)
    again.evict()
    memory.pool.allocate(2)
    assert memory.pool.allocate(2) == [second_page, first_page]


def test_keys_chain_and_depend_on_everything():
    root = root_key("self", "salt")
    assert root != root_key("self", "") and root != root_key("selfs", "alt")
    first = page_key(root, [1, 2])
    assert page_key(root, [2, 1]) != first != page_key(first, [1, 2])
    assert page_key(root, [1, 2]) == first


def test_a_hit_is_whole_pages_from_the_start_and_within_the_limit():
    memory = _memory()
    _computed(memory, range(11))
    for tokens, limit, hit in (
        (range(11), 11, 8),
        (range(8), 7, 4),
        (range(8), 8, 8),
        ((0, 1, 2, 3, 9, 9, 9, 9, 9), 9, 4),
        ((9, *range(1, 9)), 9, 0),
    ):
        sequence = _sequence(memory, tokens)
        assert sequence.pin_prefix(limit) == hit
        assert sequence.scheduled == sequence.committed == sequence.capacity == hit
    assert _sequence(memory, range(8), salt="x").pin_prefix(8) == 0


def test_only_committed_pages_enter_the_index():
    memory = _memory()
    sequence = _sequence(memory, range(12))
    sequence.reserve(12)
    sequence.scheduled = 12
    sequence.commit(7)
    assert _sequence(memory, range(12)).pin_prefix(12) == 4
    sequence.commit(8)
    assert _sequence(memory, range(12)).pin_prefix(12) == 8


def test_the_same_tokens_computed_twice_are_indexed_once():
    memory = _memory()
    first, second = _computed(memory, range(4)), _computed(memory, range(4))
    assert len(memory.index) == 1
    second.evict()
    first.evict()
    assert (memory.pool.cached, memory.pool.free) == (1, 10)
    memory.pool.audit({})


def test_without_a_prefix_cache_nothing_is_kept():
    memory = _memory(prefix_cache=False)
    _computed(memory, range(8)).evict()
    assert memory.pool.free == 11 and _sequence(memory, range(8)).pin_prefix(8) == 0


@pytest.mark.parametrize(("length", "copied"), [(8, 0), (9, 1), (11, 1)])
def test_a_fork_shares_full_pages_and_copies_the_partial_one(length, copied):
    memory = _memory()
    sequence = _computed(memory, range(length))
    sequence.reserve(length + 1, spare=1)
    twin = sequence.fork()
    assert twin.pages[:2] == sequence.pages[:2] and twin.pages[2] != sequence.pages[2]
    assert twin.copies == [(sequence.pages[2], twin.pages[2])] * copied
    assert twin.tokens == sequence.tokens and twin.tokens is not sequence.tokens
    assert twin.capacity == 12 and not sequence.spare
    source = sequence.pages[2]
    sequence.evict()
    assert memory.pool.references(source) == copied  # held until it is copied
    twin.evict()
    memory.pool.audit({})
    assert memory.pool.available == 11


def test_a_fork_made_while_the_prompt_is_in_flight_commits_for_itself():
    memory = _memory()
    sequence = _sequence(memory, range(9))
    sequence.reserve(10, spare=1)
    sequence.scheduled = 9
    twin = sequence.fork()
    sequence.evict()
    assert len(memory.index) == 0
    twin.commit(9)
    assert _sequence(memory, range(9)).pin_prefix(9) == 8


def test_a_fork_without_a_spare_page_allocates_or_fails_whole():
    memory = _memory(num_pages=4)
    sequence = _computed(memory, range(10))
    with pytest.raises(OutOfPagesError):
        sequence.fork()
    memory.pool.audit({page: 1 for page in sequence.pages})


def test_reserve_adds_only_what_is_missing():
    memory = _memory()
    sequence = _sequence(memory, range(5))
    assert sequence.missing(5, spare=2) == 4
    sequence.reserve(5, spare=2)
    assert sequence.missing(8, spare=2) == 0 and sequence.missing(9, spare=2) == 1
    assert len(sequence.held()) == 4 and sequence.capacity == 8
    view = sequence.pages
    assert sequence.pages is view  # rebuilt only when it changes
    sequence.reserve(9)
    assert sequence.pages[:2] == view and len(sequence.pages) == 3


def test_truncate_takes_back_what_is_not_committed_and_nothing_else():
    memory = _memory()
    sequence = _sequence(memory, range(12))
    sequence.reserve(12)
    sequence.scheduled = 12
    sequence.commit(6)
    sequence.truncate(7)
    assert (sequence.tokens, sequence.scheduled, len(sequence.pages)) == (list(range(7)), 7, 2)
    with pytest.raises(ValueError, match="committed"):
        sequence.truncate(5)


def test_evict_keeps_the_tokens_and_marks_a_new_generation():
    memory = _memory()
    sequence = _computed(memory, range(6))
    before = sequence.generation
    sequence.evict()
    assert sequence.tokens == list(range(6)) and sequence.pages == () and sequence.generation > before
    assert sequence.pin_prefix(5) == 4


def test_random_sharing_conserves_pages():
    rng = random.Random(3)
    memory = _memory(num_pages=30)
    live: list[Sequence] = []
    for _ in range(2000):
        action = rng.random()
        if action < 0.4:
            sequence = _sequence(memory, [rng.randint(0, 1) for _ in range(rng.randint(1, 20))])
            sequence.pin_prefix(len(sequence.tokens) - 1)
            if sequence.missing(len(sequence.tokens) + 1, 1) <= memory.pool.available:
                sequence.reserve(len(sequence.tokens) + 1, 1)
                sequence.scheduled = len(sequence.tokens)
                sequence.commit(sequence.scheduled)
            live.append(sequence)
        elif live and action < 0.6 and live[-1].spare:
            live.append(live[-1].fork())
        elif live:
            live.pop(rng.randrange(len(live))).evict()
        expected: dict[int, int] = {}
        for sequence in live:
            for page in sequence.held():
                expected[page] = expected.get(page, 0) + 1
        memory.pool.audit(expected)


def test_slots_are_given_once_and_taken_back_once():
    slots = SlotPool(2)
    taken = [slots.take(), slots.take()]
    assert sorted(taken) == [0, 1] and slots.free == 0
    slots.audit(taken)
    slots.give(0)
    with pytest.raises(AssertionError):
        slots.give(0)
    with pytest.raises(AssertionError):
        slots.audit([0, 1])


@pytest.mark.parametrize("wrong", [{"num_pages": 1}, {"page_size": 0}, {"groups": ("a", "b")}, {"roles": frozenset()}])
def test_a_config_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError):
        config(**wrong)

"""Head layouts are exact: every query head sits with its own KV head, on every device, and pads carry nothing."""

import pytest

from triptych.sharding.heads import IncompatibleTpError, fitting_tp_sizes, head_layout, padded_size

SHAPES = [(4, 4), (8, 2), (9, 3), (6, 2), (32, 8), (12, 2), (14, 2), (16, 1), (20, 5)]


@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_every_query_head_sits_beside_its_own_kv_head_on_one_device(heads: int, kv_heads: int) -> None:
    for tp in fitting_tp_sizes(heads, kv_heads):
        layout = head_layout(heads, kv_heads, tp)
        assert layout.heads_total % tp == 0 and layout.kv_heads_total % tp == 0
        queries, slots = layout.query_sources(), layout.slots()
        assert [head for head in queries if head is not None] == list(range(heads))
        for at, query in enumerate(queries):
            device, local = divmod(at, layout.heads_per_device)
            kv_head = slots[device][local // layout.group]
            expected = None if query is None else query // (heads // kv_heads)
            assert kv_head == expected, f"tp={tp}: query head {query} meets KV head {kv_head}"


@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_every_kv_head_is_held_equally_often_and_the_cache_at_most_doubles_by_padding(
    heads: int, kv_heads: int
) -> None:
    for tp in fitting_tp_sizes(heads, kv_heads):
        layout = head_layout(heads, kv_heads, tp)
        held = [head for slot in layout.slots() for head in slot if head is not None]
        assert sorted(held) == sorted(list(range(kv_heads)) * layout.replicas)
        assert layout.kv_heads_total <= 2 * kv_heads or layout.kv_heads_total == len(held)


def test_plain_replicated_and_padded_layouts() -> None:
    assert head_layout(8, 4, 2).slots() == ((0, 1), (2, 3))
    assert head_layout(8, 2, 4).slots() == ((0,), (0,), (1,), (1,))
    assert head_layout(9, 3, 2).slots() == ((0, 1), (2, None))
    assert head_layout(9, 3, 2).heads_total == 12


def test_a_size_that_does_not_fit_is_refused_with_the_sizes_that_do() -> None:
    with pytest.raises(IncompatibleTpError, match=r"tp=8.*tp sizes that fit: 1, 2, 3, 4, 5, 6, 9$"):
        head_layout(9, 3, 8)
    with pytest.raises(ValueError, match="at least 1"):
        head_layout(8, 2, 0)


def test_padded_size_is_the_next_multiple() -> None:
    assert [padded_size(size, 4) for size in (1, 4, 5, 254)] == [4, 4, 8, 256]

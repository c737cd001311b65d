"""The heap behaves like a sorted dict and does not grow with what was removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from triptych.runtime.scheduler.lazy_heap import LazyHeap

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 9), st.integers(0, 5)),
        st.tuples(st.just("discard"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.just(0)),
        st.tuples(st.just("due"), st.just(0), st.integers(0, 5)),
    )
)


@given(OPERATIONS)
def test_it_agrees_with_a_dict_that_is_sorted_every_time(operations) -> None:
    heap: LazyHeap[int, int] = LazyHeap()
    model: dict[int, tuple[int, int]] = {}
    for serial, (name, key, priority) in enumerate(operations):
        if name == "put":
            heap.put(key, priority)
            model[key] = (priority, serial)
        elif name == "discard":
            heap.discard(key)
            model.pop(key, None)
        elif name == "pop" and model:
            first = min(model, key=lambda k: model[k])
            assert heap.pop() == first
            del model[first]
        elif name == "due":
            due = sorted((k for k in model if model[k][0] <= priority), key=lambda k: model[k])
            assert list(heap.pop_due(priority)) == due
            for k in due:
                del model[k]
        assert len(heap) == len(model) and set(heap) == set(model)


def test_memory_is_bounded_by_the_live_entries() -> None:
    heap: LazyHeap[int, float] = LazyHeap()
    for n in range(10_000):
        heap.put(n, float(n))
        heap.discard(n - 10)
    assert len(heap) == 10 and len(heap._heap) < 200

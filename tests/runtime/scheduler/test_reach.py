"""The longest servable sequence, kept up to date, is the longest over all placements."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.scheduler.world import info
from triptych.runtime.core.instance import InstanceInfo, TransportKind
from triptych.runtime.scheduler.cluster import Pool, pool_of
from triptych.runtime.scheduler.placement import can_feed
from triptych.runtime.scheduler.reach import Reach

INFOS = st.builds(
    lambda number, roles, length, transports, domain: info(
        f"i{number}", roles, max_model_len=length, transports=tuple(transports), domain=domain
    ),
    st.integers(0, 1000),
    st.sampled_from(["p", "d", "pd", "e"]),
    st.sampled_from([8, 16, 32, 64]),
    st.lists(st.sampled_from(list(TransportKind)), unique=True, max_size=3),
    st.sampled_from(["", "a", "b"]),
)


def longest(infos: list[InstanceInfo]) -> int:
    """By the definition: over every instance alone, and every pair."""
    alone = [i.capacity.max_model_len for i in infos if pool_of(i.roles) is Pool.LOCAL]
    pairs = [
        min(p.capacity.max_model_len, d.capacity.max_model_len)
        for p in infos
        for d in infos
        if p is not d
        and pool_of(p.roles) in (Pool.PREFILL, Pool.LOCAL)
        and pool_of(d.roles) in (Pool.DECODE, Pool.LOCAL)
        and can_feed(p, d)
    ]
    return max(alone + pairs, default=0)


@settings(deadline=None)
@given(st.lists(st.tuples(INFOS, st.booleans()), max_size=12))
def test_it_is_the_longest_over_all_placements_after_every_change(changes: list[tuple[InstanceInfo, bool]]) -> None:
    reach, present = Reach(), []
    for one, leaves in changes:
        reach.add(one)
        present.append(one)
        assert reach.longest == longest(present)
        if leaves:
            gone = present.pop(0)
            reach.remove(gone)
            assert reach.longest == longest(present)


def test_a_shortage_says_what_is_missing() -> None:
    reach = Reach()
    assert reach.shortage(5) == "no prefill and no decode instance"
    reach.add(info("p", "p", transports=(TransportKind.DEVICE,)))
    assert reach.shortage(5) == "no decode instance"
    reach.add(info("d", "d", transports=(TransportKind.GRPC,)))
    assert reach.shortage(5) == "no transport between the prefill and the decode instances"
    reach.add(info("pd", "pd", max_model_len=16))
    assert reach.shortage(20) == "no placement for 20 tokens (the longest sequence served is 16 tokens)"

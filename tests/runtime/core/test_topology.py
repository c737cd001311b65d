"""Topologies: what can be read, what is refused and how helpfully."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import Topology, TopologyError, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1P1D", Topology(prefill=1, decode=1)),
        (" 2p3d ", Topology(prefill=2, decode=3)),
        ("PD", Topology(combined=1)),
        ("4pd", Topology(combined=4)),
        ("12P1D", Topology(prefill=12, decode=1)),
    ],
)
def test_reads_the_usual_spellings(text: str, expected: Topology):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1P", "1D", "P1D", "1P1D1", "0P1D", "1P0D", "0PD", "1E1P1D", "two", "1D1P", "-1P1D", "99999PD"]
)
def test_refuses_what_cannot_serve_and_shows_what_can(text: str):
    with pytest.raises(TopologyError) as caught:
        parse(text)
    assert repr(text) in caught.value.message
    assert isinstance(caught.value, ConfigError)


@given(
    st.one_of(
        st.builds(Topology, prefill=st.integers(1, 50), decode=st.integers(1, 50)),
        st.builds(Topology, combined=st.integers(1, 50)),
    )
)
def test_printing_and_reading_are_inverse(topology: Topology):
    assert parse(str(topology)) == topology


def test_instances_are_named_uniquely_and_start_with_decode():
    specs = parse("2P1D").instances()
    assert [s.id for s in specs] == ["decode-0", "prefill-0", "prefill-1"]
    assert specs[0].roles == {Role.DECODE}
    assert parse("PD").instances()[0].roles == {Role.PREFILL, Role.DECODE}

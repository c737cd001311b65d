"""Topologies: what can be read, what is refused and how helpfully."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.topology import Group, Topology, TopologyError, parse

E, P, D = frozenset({Role.ENCODE}), frozenset({Role.PREFILL}), frozenset({Role.DECODE})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1P1D", (Group(1, (P,)), Group(1, (D,)))),
        (" 2p3d ", (Group(2, (P,)), Group(3, (D,)))),
        ("P-D", (Group(1, (P,)), Group(1, (D,)))),
        ("2P-1D", (Group(2, (P,)), Group(1, (D,)))),
        ("P1D", (Group(1, (P,)), Group(1, (D,)))),
        ("1D1P", (Group(1, (D,)), Group(1, (P,)))),
        ("PD", (Group(1, (P | D,)),)),
        ("4pd", (Group(4, (P | D,)),)),
        ("(P-D)", (Group(1, (P, D)),)),
        ("2(p-d)1D", (Group(2, (P, D)), Group(1, (D,)))),
        ("PD-D", (Group(1, (P | D,)), Group(1, (D,)))),
        ("1E1P1D", (Group(1, (E,)), Group(1, (P,)), Group(1, (D,)))),
        ("2e1p2d", (Group(2, (E,)), Group(1, (P,)), Group(2, (D,)))),
        ("(E-P)-D", (Group(1, (E, P)), Group(1, (D,)))),
        ("EP-D", (Group(1, (E | P,)), Group(1, (D,)))),
        ("E-PD", (Group(1, (E,)), Group(1, (P | D,)))),
        ("EPD", (Group(1, (E | P | D,)),)),
        ("2(E-P-D)", (Group(2, (E, P, D)),)),
        ("(EP-D)", (Group(1, (E | P, D)),)),
    ],
)
def test_reads_the_usual_spellings(text: str, expected: tuple[Group, ...]):
    assert parse(text) == Topology(expected)


@pytest.mark.parametrize(
    "text",
    [
        "", "1P", "1D", "P", "0P1D", "1P0D", "0PD", "1E", "1E1P", "0E1P1D", "EEPD", "(E-E)-PD", "XPD", "two", "-1P1D", "1P1D-", "1P--1D", "99999PD", "PPD", "(PD)", "(P-D", "(P-P)",
        "()", "1P1D1", "PD(P-D)",
    ],
)  # fmt: skip
def test_refuses_what_cannot_serve_and_shows_what_can(text: str):
    with pytest.raises(TopologyError) as caught:
        parse(text)
    assert repr(text) in caught.value.message
    assert isinstance(caught.value, ConfigError)


@given(
    st.lists(
        st.builds(
            Group,
            st.integers(1, 50),
            st.sampled_from([(P,), (D,), (P | D,), (P, D), (D, P), (E,), (E | P,), (E, P), (E | P | D,), (E, P | D)]),
        ),
        min_size=1,
        max_size=4,
    ).filter(lambda groups: {Role.PREFILL, Role.DECODE} <= {role for group in groups for role in group.roles})
)
def test_printing_and_reading_are_inverse(groups: list[Group]):
    topology = Topology(tuple(groups))
    assert parse(str(topology)) == topology
    names = [spec.id for spec in topology.instances()]
    assert len(set(names)) == len(names) == sum(group.count for group in groups)


def test_instances_are_named_and_start_with_decode():
    specs = parse("2P1D").instances()
    assert [s.id for s in specs] == ["decode-0", "prefill-0", "prefill-1"]
    assert specs[0].roles == {Role.DECODE}
    assert [s.id for s in parse("PD").instances()] == ["pd-0"]
    assert [s.id for s in parse("PD2PD").instances()] == ["pd-0", "pd-1", "pd-2"]


def test_what_shares_devices_is_one_instance_with_several_loops():
    (spec,) = parse("(P-D)").instances()
    assert (spec.id, spec.loops, spec.roles) == ("p-d-0", (P, D), {Role.PREFILL, Role.DECODE})
    assert not parse("(P-D)").disaggregated and not parse("3PD").disaggregated
    assert parse("PD-D").disaggregated and parse("1P1D").disaggregated


def test_encode_instances_start_last_and_move_no_kv():
    assert [s.id for s in parse("2E1P1D").instances()] == ["decode-0", "prefill-0", "encode-0", "encode-1"]
    assert [s.id for s in parse("EP-D").instances()] == ["decode-0", "ep-0"]
    (spec,) = (s for s in parse("(E-P)-D").instances() if Role.ENCODE in s.roles)
    assert (spec.id, spec.loops, spec.roles) == ("e-p-0", (E, P), E | P)
    assert [s.id for s in parse("EPD").instances()] == ["epd-0"]
    assert not parse("E-PD").disaggregated and not parse("EPD").disaggregated
    assert parse("1E1P1D").disaggregated and parse("(E-P)-D").disaggregated

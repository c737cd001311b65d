"""Which processes and links chaos aims at, and what it says where there is no such thing."""

from __future__ import annotations

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.tools.trials.chaos import aimed, kind_of, links_of, roles_of
from triptych.tools.trials.media_load import sees

PLANES = ("scheduler", "gateway")


@pytest.mark.parametrize(
    ("topology", "roles", "links"),
    [
        ("1P2D", ("decode", "prefill"), ("prefill/decode",)),
        ("2E1P1D", ("decode", "prefill", "encode"), ("gateway/encode", "encode/prefill", "prefill/decode")),
        ("(E-P)-D", ("decode", "e-p"), ("gateway/e-p", "e-p/decode")),
        ("E-PD", ("pd", "encode"), ("gateway/encode", "encode/pd")),
        ("EPD", ("epd",), ("gateway/epd",)),
    ],
)
def test_every_kind_of_process_and_every_link_of_a_topology(
    topology: str, roles: tuple[str, ...], links: tuple[str, ...]
) -> None:
    assert roles_of(topology) == (*roles, *PLANES)
    assert links_of(topology) == links
    assert sees(topology) == ("E" in topology)


def test_processes_are_named_after_instances() -> None:
    assert [kind_of(name) for name in ("encode-0", "e-p-12", "gateway")] == ["encode", "e-p", "gateway"]


def test_victims_are_some_that_there_are() -> None:
    assert aimed(" encode, gateway/encode", "1E1P1D") == ("encode", "gateway/encode")
    assert aimed("", "1E1P1D") == ()
    with pytest.raises(ConfigError, match="expected some of decode, prefill, scheduler, gateway, prefill/decode"):
        aimed("encode", "1P1D")

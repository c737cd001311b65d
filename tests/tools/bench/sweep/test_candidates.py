"""Topologies with their options, and that only those of equally many devices are compared."""

from __future__ import annotations

import pytest

from tests.tools.bench.sweep.fakes import candidates
from triptych.runtime.core.errors import ConfigError


def test_options_hold_for_their_topology_alone():
    two, split, wide, tuned = candidates("2PD,1P1D:one,PD:tp2,(P-D):tp2:max-num-seqs=3", max_num_seqs="5")
    assert [one.devices for one in (two, split, wide, tuned)] == [2, 2, 2, 2]
    assert split.config.processes == "one" and two.config.processes == "per-instance"
    assert wide.config.tensor_parallel_size == 2 and two.config.tensor_parallel_size == 1
    assert (tuned.config.max_num_seqs, two.config.max_num_seqs) == (3, 5)
    assert two.config.port == 0 and two.config.model == "dummy:toy"


def test_widths_by_stage_are_counted():
    (one,) = candidates("2P1D:ptp1:dtp2")
    assert one.devices == 4 and (one.config.prefill_tp, one.config.decode_tp) == (1, 2)
    (media,) = candidates("1E1P1D:etp2")
    assert media.devices == 4


def test_other_numbers_of_devices_are_refused_with_each_number():
    with pytest.raises(ConfigError, match="2PD 2, 1P1D 2, 1P1D:tp2 4, PD 1"):
        candidates("2PD,1P1D,1P1D:tp2,PD")


@pytest.mark.parametrize(
    ("text", "monolithic"),
    [
        ("2PD", True),
        ("PD:tp2", True),
        ("2(P-D)", True),
        ("1P1D", False),
        ("2EPD", True),
        ("1E1PD", False),
        ("1EP1D", False),
    ],
)
def test_the_monolith_does_everything_in_every_instance(text: str, monolithic: bool):
    assert candidates(text)[0].monolithic is monolithic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2PD,2PD", "the same one twice"),
        ("PD:tp0", "'tp0' is not"),
        ("PD:nonsense=1", "'nonsense=1' is not"),
        ("PD:port=1", "'port=1' is not"),
        ("PD:model=x", "model must be the same"),
        ("PD:max_num_seqs=-1", "PD:max_num_seqs=-1: .*positive"),
        ("PD:ptp2", "prefill_tp"),
        ("QD", "QD"),
    ],
)
def test_wrong_options_are_named(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        candidates(text)


def test_deployments_of_a_sweep_have_no_tokens():
    with pytest.raises(ConfigError, match="leave out tokens"):
        candidates("PD", api_key="secret")

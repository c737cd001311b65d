"""How many instances of which kind serve one model, written the way people say it: 1P1D, 2P3D, PD, 4PD.

Grammar: xPyD is x prefill instances feeding y decode instances; nPD is n instances that do both (PD alone means 1PD, the monolithic
baseline). Case does not matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role

EXAMPLES = "1P1D (one prefill, one decode), 2P1D, 3P5D, PD (one instance does both), 4PD (four that do both)"
MAX_INSTANCES = 10_000  # a typing error, not a cluster

_SPLIT = re.compile(r"(\d+)P(\d+)D")
_COMBINED = re.compile(r"(\d*)PD")


class TopologyError(ConfigError):
    """A topology that cannot be read or cannot serve; the message shows some that can."""


@dataclass(frozen=True)
class InstanceSpec:
    """One instance to be started: its name, unique in the topology, and what it does."""

    id: str
    roles: frozenset[Role]


@dataclass(frozen=True)
class Topology:
    """Numbers of instances by kind; build one with `parse`. Either `combined` is positive or both others are."""

    prefill: int = 0
    decode: int = 0
    combined: int = 0

    @property
    def disaggregated(self) -> bool:
        """Whether KV moves between instances."""
        return self.combined == 0

    def instances(self) -> tuple[InstanceSpec, ...]:
        """The instances in starting order, decode first: a prefill instance is useless before somebody can take its KV."""
        kinds = (
            ("decode", self.decode, frozenset({Role.DECODE})),
            ("prefill", self.prefill, frozenset({Role.PREFILL})),
            ("pd", self.combined, frozenset({Role.PREFILL, Role.DECODE})),
        )
        return tuple(InstanceSpec(f"{name}-{i}", roles) for name, count, roles in kinds for i in range(count))

    def __str__(self) -> str:
        return f"{self.prefill}P{self.decode}D" if self.disaggregated else f"{self.combined}PD"


def parse(text: str) -> Topology:
    """The topology that `text` names.

    Raises:
        TopologyError: it is not of the form xPyD or nPD, or a count is zero or absurd.
    """
    compact = text.strip().upper()
    if match := _SPLIT.fullmatch(compact):
        topology = Topology(prefill=int(match[1]), decode=int(match[2]))
        counts = (topology.prefill, topology.decode)
    elif match := _COMBINED.fullmatch(compact):
        topology = Topology(combined=int(match[1] or "1"))
        counts = (topology.combined,)
    else:
        raise TopologyError(f"topology {text!r} is not of the form xPyD or nPD; for example {EXAMPLES}")
    if min(counts) < 1:
        raise TopologyError(f"topology {text!r} has a stage that nobody serves; for example {EXAMPLES}")
    if sum(counts) > MAX_INSTANCES:
        raise TopologyError(f"topology {text!r} has {sum(counts)} instances; at most {MAX_INSTANCES} are supported")
    return topology

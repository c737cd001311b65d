"""Which instances serve one model, written the way the literature does: 1P1D, 2P3D, PD, 2PD, (P-D), 1E1P1D, (E-P)-D, EP-D, EPD.

    topology   groups behind one another; "-" between two of them means what it says, other devices, and may be left out after a count
    group      [count] letters           one loop with all of these roles: P, D, PD, E, EP, EPD
               [count] ( loop - loop )   separate loops over one pool on the same devices: (P-D), (E-P)

So P-D, 1P-1D and 1P1D are the same. In PD a step holds decode rows and prefill chunks together; in (P-D) a step is one or the other, in turns, and the KV
never moves either. E encodes media: in EP beside prefill chunks, in (E-P) in steps of its own, and embeddings move in neither. Whether a model needs
an E is not decided here. Case does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role

EXAMPLES = "1P1D (one prefill, one decode), 2P3D, PD (one instance does both), 4PD, (P-D) (both in turns, on one pool), 1E1P1D (one more encodes media)"
MAX_INSTANCES = 10_000  # a typing error, not a cluster

_LETTERS = {Role.ENCODE: "E", Role.PREFILL: "P", Role.DECODE: "D"}
_ROLES = {letter: role for role, letter in _LETTERS.items()}
_GROUP = re.compile(r"(\d*)(?:([A-Z]+)|\(([A-Z]+(?:-[A-Z]+)+)\))(-?)")
_NAMES = {"E": "encode", "P": "prefill", "D": "decode"}

Loops = tuple[frozenset[Role], ...]


class TopologyError(ConfigError):
    """A topology that cannot be read or cannot serve; the message shows some that can."""


@dataclass(frozen=True)
class InstanceSpec:
    """One instance to be started: its name, unique in the topology, and the loops that share its devices and its pool.

    A loop is the set of roles whose work goes into the same steps.
    """

    id: str
    loops: Loops

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset().union(*self.loops)


@dataclass(frozen=True)
class Group:
    """`count` instances of one kind."""

    count: int
    loops: Loops

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset().union(*self.loops)

    def __str__(self) -> str:
        spelt = "-".join(map(_spell, self.loops))
        return f"{self.count}({spelt})" if len(self.loops) > 1 else f"{self.count}{spelt}"


@dataclass(frozen=True)
class Topology:
    """Groups of like instances; make one with `parse`. Someone prefills and someone decodes."""

    groups: tuple[Group, ...]

    @property
    def disaggregated(self) -> bool:
        """Whether some instance that computes tokens cannot serve a request of text alone, so that KV moves between instances."""
        stages = frozenset({Role.PREFILL, Role.DECODE})
        return any(0 < len(group.roles & stages) < len(stages) for group in self.groups)

    def instances(self) -> tuple[InstanceSpec, ...]:
        """The instances in starting order, decode first: a prefill instance is useless before somebody can take its KV. Those that only
        encode come last."""
        numbers: dict[str, int] = {}
        specs: list[InstanceSpec] = []
        for group in sorted(
            self.groups, key=lambda group: (Role.DECODE not in group.roles, Role.PREFILL not in group.roles)
        ):
            spelt = "-".join(map(_spell, group.loops))
            name = _NAMES.get(spelt, spelt.lower())
            for _ in range(group.count):
                number = numbers[name] = numbers.get(name, -1) + 1
                specs.append(InstanceSpec(f"{name}-{number}", group.loops))
        return tuple(specs)

    def __str__(self) -> str:
        return "".join(map(str, self.groups))


def parse(text: str) -> Topology:
    """The topology that `text` names.

    Raises:
        TopologyError: it is not of this form, names a role twice in a group, or a stage is served by nobody or by an absurd number.
    """
    groups = tuple(_groups(text))
    roles = frozenset().union(*(group.roles for group in groups))
    if any(group.count < 1 for group in groups) or not {Role.PREFILL, Role.DECODE} <= roles:
        raise TopologyError(f"topology {text!r} has a stage that nobody serves; for example {EXAMPLES}")
    total = sum(group.count for group in groups)
    if total > MAX_INSTANCES:
        raise TopologyError(f"topology {text!r} has {total} instances; at most {MAX_INSTANCES} are supported")
    return Topology(groups)


def _groups(text: str) -> Iterator[Group]:
    rest = text.strip().upper()
    if rest.endswith("-") or not rest:
        raise _unreadable(text)
    counted = True  # whether what was read so far ends in a way that another group may follow
    while rest:
        match = _GROUP.match(rest)
        if match is None or not (counted or match[1]):
            raise _unreadable(text)
        spelt = match[2] or match[3]
        letters = spelt.replace("-", "")
        if len(set(letters)) != len(letters) or not set(letters) <= _ROLES.keys():
            raise _unreadable(text)
        loops = tuple(frozenset(_ROLES[letter] for letter in loop) for loop in spelt.split("-"))
        yield Group(int(match[1] or "1"), loops)
        counted = bool(match[4])
        rest = rest[match.end() :]


def _spell(roles: frozenset[Role]) -> str:
    return "".join(letter for role, letter in _LETTERS.items() if role in roles)


def _unreadable(text: str) -> TopologyError:
    return TopologyError(f"topology {text!r} is not of the form xEyPzD, nPD or n(P-D); for example {EXAMPLES}")

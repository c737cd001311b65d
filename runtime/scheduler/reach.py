"""The longest sequence that some placement can hold, kept up to date as instances come and go.

Instances are counted by what decides whether they can talk: their transports, and their domain where LOCAL may be the only transport shared. There
are few kinds of instance, so a change costs no walk over the cluster.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from triptych.runtime.core.instance import InstanceInfo, Role, TransportKind

_SIDES = (Role.PREFILL, Role.DECODE)


class Reach:
    """A multiset of instances and the one number that follows from it."""

    def __init__(self) -> None:
        self._alone: Counter[int] = Counter()  # lengths of instances with both roles
        self._remote: dict[Role, dict[frozenset[TransportKind], Counter[int]]] = {
            side: defaultdict(Counter) for side in _SIDES
        }
        self._domains: dict[str, dict[Role, Counter[int]]] = {}
        self._in_domains: Counter[int] = Counter()  # the longest of each domain that can serve alone
        self._roles: Counter[Role] = Counter()
        self._longest = 0

    @property
    def longest(self) -> int:
        """In tokens, prompt and outputs together; 0 if no placement exists."""
        return self._longest

    def count(self, role: Role) -> int:
        """Instances with `role`."""
        return self._roles[role]

    def add(self, info: InstanceInfo) -> None:
        self.change(info, 1)

    def remove(self, info: InstanceInfo) -> None:
        """Undo `add`."""
        self.change(info, -1)

    def shortage(self, length: int) -> str:
        """Why nothing can serve a sequence of `length` tokens."""
        missing = [side for side in _SIDES if not self._roles[side]]
        if missing:
            return f"no {' and no '.join(missing)} instance"
        if self._longest == 0:
            return "no transport between the prefill and the decode instances"
        return f"no placement for {length} tokens (the longest sequence served is {self._longest} tokens)"

    def change(self, info: InstanceInfo, by: int) -> None:
        """Add `info` (`by` 1) or take it out (-1)."""
        length = info.capacity.max_model_len
        for role in info.roles:
            self._roles[role] += by
        sides = [side for side in _SIDES if side in info.roles]
        if len(sides) == 2:
            _count(self._alone, length, by)
        kinds = frozenset(info.transports) - {TransportKind.LOCAL}
        for side in sides:
            lengths = self._remote[side][kinds]
            _count(lengths, length, by)
            if not lengths:
                del self._remote[side][kinds]
        if sides and TransportKind.LOCAL in info.transports and info.domain:
            self._change_domain(info.domain, sides, length, by)
        self._longest = max(_most(self._alone), _most(self._in_domains), self._farthest())

    def _change_domain(self, domain: str, sides: list[Role], length: int, by: int) -> None:
        lengths = self._domains.setdefault(domain, {side: Counter() for side in _SIDES})
        before = min(_most(lengths[side]) for side in _SIDES)
        for side in sides:
            _count(lengths[side], length, by)
        if not any(lengths.values()):
            del self._domains[domain]
        after = min(_most(lengths[side]) for side in _SIDES)
        if after != before:
            for value, change in ((before, -1), (after, 1)):
                if value:
                    _count(self._in_domains, value, change)

    def _farthest(self) -> int:
        """The longest over pairs that share a transport between processes."""
        return max(
            (
                min(_most(have), _most(want))
                for source, have in self._remote[Role.PREFILL].items()
                for puller, want in self._remote[Role.DECODE].items()
                if source & puller
            ),
            default=0,
        )


def _count(counter: Counter[int], value: int, by: int) -> None:
    counter[value] += by
    if counter[value] == 0:
        del counter[value]


def _most(counter: Counter[int]) -> int:
    return max(counter, default=0)

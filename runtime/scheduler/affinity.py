"""Where media were encoded last: what is sent there again is found in that instance's store, or encoded once for everybody who waits."""

from __future__ import annotations

from collections import OrderedDict

from triptych.runtime.core.instance import InstanceRef


class Affinity:
    """A bounded map from content hashes to instances; the hash that was used longest ago is forgotten first. A hint: nothing relies on it."""

    def __init__(self, size: int):
        self._size = size
        self._known: OrderedDict[str, InstanceRef] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, hash: str) -> InstanceRef | None:
        """Who was given `hash` last; the instance may be gone."""
        ref = self._known.get(hash)
        if ref is not None:
            self._known.move_to_end(hash)
        return ref

    def put(self, hash: str, ref: InstanceRef) -> None:
        """`ref` was given `hash` to encode."""
        self._known[hash] = ref
        self._known.move_to_end(hash)
        if len(self._known) > self._size:
            self._known.popitem(last=False)

    def drop(self, hash: str, ref: InstanceRef) -> None:
        """`ref` has not got `hash` after all, or may have lost it."""
        if self._known.get(hash) == ref:
            del self._known[hash]

"""SlotPool: sampler slots, one per sample that may draw. The device keeps per-slot state, which the Seat of the next
owner replaces."""

from __future__ import annotations


class SlotPool:
    """Slots 0..count-1; the lowest free one is not promised."""

    def __init__(self, count: int):
        self._free = list(range(count - 1, -1, -1))
        self._taken = [False] * count

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free slot; the caller has checked `free`."""
        slot = self._free.pop()
        self._taken[slot] = True
        return slot

    def give(self, slot: int) -> None:
        if not self._taken[slot]:
            raise AssertionError(f"slot {slot} was given back twice")
        self._taken[slot] = False
        self._free.append(slot)

    def audit(self, owned: list[int]) -> None:
        """Raises AssertionError unless `owned` are exactly the taken slots, each once, and none is lost."""
        taken = [slot for slot, is_taken in enumerate(self._taken) if is_taken]
        if sorted(owned) != taken:
            raise AssertionError(f"slots taken {taken}, owned {sorted(owned)}")
        if sorted(self._free + taken) != list(range(len(self._taken))):
            raise AssertionError("slots are not conserved")

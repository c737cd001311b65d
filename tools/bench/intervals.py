"""How much of the time that KV is on its way hides behind prefill, from timestamps. No devices, no clock.

Overlap is 1 - exposed / total transfer time, as EPD-Serve (arXiv 2601.11590) counts it. What is exposed can be asked in two ways, and the two
differ where prompts follow each other without a gap:

- *in the run*: transfer time during which no prompt at all is computed;
- *per request*: of a request's own transfer time, what comes after its own prompt was computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points as intervals that do not touch, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif end > begin:
            merged.append((begin, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    """Seconds that at least one of the intervals covers."""
    return sum(end - begin for begin, end in union(intervals))


def uncovered(intervals: Iterable[Interval], by: Iterable[Interval]) -> float:
    """Seconds of `intervals` that lie outside `by`."""
    mine, cover = list(intervals), list(by)
    return length([*mine, *cover]) - length(cover)


@dataclass(frozen=True)
class Request:
    """One request's prompt and its KV: when the steps that computed the prompt ran, and when its offers were on their way."""

    compute: tuple[Interval, ...]
    offers: tuple[Interval, ...]

    @property
    def computed(self) -> float:
        """When its prompt was done."""
        return max(end for _, end in self.compute)

    @property
    def exposed(self) -> float:
        """Seconds of its own transfers after its prompt was done."""
        return uncovered(self.offers, [(min(begin for begin, _ in self.offers), self.computed)])

    @property
    def late(self) -> float:
        """Seconds from the end of its prompt until all of its KV was there, waiting behind others' offers included."""
        return max(0.0, max(end for _, end in self.offers) - self.computed)


@dataclass(frozen=True)
class Overlap:
    """The figures of a run, in seconds."""

    offers: int
    compute: float
    transfer: float
    exposed_of_requests: float
    exposed_in_run: float
    late: float

    @property
    def of_requests(self) -> float:
        return 1.0 - self.exposed_of_requests / self.transfer

    @property
    def in_run(self) -> float:
        return 1.0 - self.exposed_in_run / self.transfer


def overlap(requests: Sequence[Request]) -> Overlap:
    """All requests of a run together; `late` is the mean. At most one step and one offer are under way at a time.

    Raises ValueError without requests, and for a request of which no step or no offer was seen.
    """
    if not requests or not all(request.compute and request.offers for request in requests):
        raise ValueError("an overlap needs requests, and of each the steps and offers")
    compute = [step for request in requests for step in request.compute]
    offers = [offer for request in requests for offer in request.offers]
    return Overlap(
        offers=len(offers),
        compute=length(compute),
        transfer=length(offers),
        exposed_of_requests=sum(request.exposed for request in requests),
        exposed_in_run=uncovered(offers, compute),
        late=sum(request.late for request in requests) / len(requests),
    )

"""The requests under way, by name: what a process of a study has to know of each, made from its arrival alone."""

from __future__ import annotations

from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.instance.tasks import Stream
from triptych.runtime.simulation.workload import Arrival
from triptych.runtime.simulation.workload_tokens import TokenSource

GATEWAY, MODEL = "gateway-0", "model"


class Book:
    """Requests are opened when they arrive and closed when they have ended."""

    def __init__(self, tokens: TokenSource):
        self._tokens = tokens
        self._open: dict[str, tuple[Arrival, Request]] = {}
        self._sampling: dict[int, SamplingParams] = {}
        self._sessions = 0  # requests so far that belong to one: only their tokens matter

    def __len__(self) -> int:
        return len(self._open)

    def open(self, arrival: Arrival) -> Request:
        """The request of `arrival`, named after its serial number; the one made before, if it is open."""
        name = str(arrival.serial)
        if (known := self._open.get(name)) is not None:
            return known[1]
        outputs = arrival.shape.output_tokens
        sampling = self._sampling.get(outputs)
        if sampling is None:
            sampling = self._sampling[outputs] = SamplingParams(max_tokens=outputs, ignore_eos=True)
        self._sessions += arrival.shape.session is not None
        media = _media(arrival) if arrival.shape.images else ()
        request = Request(name, GATEWAY, MODEL, self._tokens.prompt(arrival), sampling, media=media)
        self._open[name] = arrival, request
        return request

    def close(self, name: str) -> None:
        """Forget a request; one that is not open is none of this process's."""
        self._open.pop(name, None)

    def request(self, name: str) -> Request:
        return self._open[name][1]

    def find(self, name: str) -> Request | None:
        """None if it is not open (any more)."""
        entry = self._open.get(name)
        return None if entry is None else entry[1]

    def arrival(self, name: str) -> Arrival:
        return self._open[name][0]

    def draws(self, stream: Stream, position: int, count: int) -> list[int]:
        """The tokens drawn from absolute `position` on."""
        if not self._sessions:
            return [0] * count
        arrival = self._open[stream.task.request.id][0]
        return [0] * count if arrival.shape.session is None else self._tokens.tokens(arrival, position, count)


def _media(arrival: Arrival) -> tuple[MediaItem, ...]:
    """The images of a request, one after the other from the beginning of its prompt."""
    items, offset = [], 0
    for image in arrival.shape.images:
        grid = (1, 1, image.tokens)
        items.append(MediaItem(f"{image.name:x}", MediaKind.IMAGE, offset, image.tokens, image.patches, grid))
        offset += image.tokens
    return tuple(items)

"""How many layers' KV go into one offer, and when that is enough to hide it behind the prompt's computation.

An instance that computes prompts layer group by layer group can offer the KV of the first groups while the later ones are computed. Every offer
costs a hand-shake besides its bytes, so offers of one layer may take longer than a layer takes to compute: then they queue up, and what
is left of the queue when the prompt is done delays the first decode step. Offers of more layers share the hand-shake (EPD-Serve,
arXiv 2601.11590, gives the idea and no formula; the condition below is ours).
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError

LayerGroups = tuple[tuple[int, int], ...]
"""Half-open ranges of layers, in order, that cover all of them."""


@dataclass(frozen=True)
class KvTimes:
    """What decides the size of a group, measured for one step of one prompt on the machine that serves.

    Attributes:
        layer_seconds: what one layer takes to compute.
        handshake_seconds: what an offer costs whatever its size.
        layer_bytes: KV of one layer in one offer.
        bytes_per_second: at which offers travel.
    """

    layer_seconds: float
    handshake_seconds: float
    layer_bytes: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        for name in ("layer_seconds", "layer_bytes", "bytes_per_second"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a positive number")
        if not self.handshake_seconds >= 0:
            raise ConfigError(f"handshake_seconds is {self.handshake_seconds}; expected 0 or more")

    def compute_seconds(self, layers: int) -> float:
        """Of a group of `layers` layers."""
        return layers * self.layer_seconds

    def offer_seconds(self, layers: int) -> float:
        """From asking for an offer of `layers` layers until it is there."""
        return self.handshake_seconds + layers * self.layer_bytes / self.bytes_per_second


def fit_link(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """(hand-shake in seconds, bytes per second) of a link on which offers of two sizes took so long; each is (bytes, seconds).

    Where the larger one was no slower, size costs nothing that could be measured: the hand-shake is all, and the link as fast as it was seen.
    """
    (few, short), (many, long) = small, large
    if not 0 < few < many:
        raise ConfigError(f"a link is fitted to offers of two sizes, the smaller first; got {few:g} and {many:g} bytes")
    if long <= short:
        return min(short, long), many / long
    rate = (many - few) / (long - short)
    return max(0.0, short - few / rate), rate


def smallest_hidden_group(times: KvTimes, num_layers: int) -> int:
    """The fewest layers a group whose offer takes no longer than the next group's computation; all layers if none does.

    The fewest, because the last group's offer has nothing to hide behind but the next prompt.
    """
    for layers in range(1, num_layers):
        if times.compute_seconds(layers) >= times.offer_seconds(layers):
            return layers
    return num_layers


def cut_layers(num_layers: int, layers: int) -> LayerGroups:
    """Groups of `layers` layers each, the last one of what is left; more than there are means one group. ConfigError for less than 1."""
    if layers < 1:
        raise ConfigError(f"a KV layer group of {layers} layers was asked for; expected 1 or more")
    return tuple((start, min(start + layers, num_layers)) for start in range(0, num_layers, layers))

"""What passes between the two ends of a KV transfer (`producer.py`, `consumer.py`), and what both know of their instance.

The messages are those of `runtime/transfer`, in the same order: a puller opens a key and hears Opened, an offer for each exported granule, and the
final record, and releases the key. What the live transport fetches after an offer is sent here behind it, at the link's bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from triptych.runtime.core.errors import Status
from triptych.runtime.core.instance import InstanceRef
from triptych.runtime.core.request import Continuation
from triptych.runtime.instance.messages import InstanceEvent
from triptych.runtime.simulation.device import Device
from triptych.runtime.simulation.events import EventLoop, Process
from triptych.runtime.simulation.network import Network

SERVICE = "transfer"


@dataclass(frozen=True)
class TransferConfig:
    """Times in seconds; `PullLimits` and `TransferProducer` say what they are for.

    Attributes:
        page_bytes: of one KV page over all layers.
    """

    page_bytes: int = 1 << 20
    alive_interval: float = 1.0
    idle_seconds: float = 10.0
    release_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Open:
    """First message of a puller."""

    owner: InstanceRef
    key: int
    digest: str
    first_page: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Instead of Open: what is staged under these keys will be pulled once there is room."""

    owner: InstanceRef
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """The key may be pulled."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The owner still computes."""


@dataclass(frozen=True, slots=True)
class Offer:
    """`pages` pages from `first_page` of the prompt on can be fetched; Data follows."""

    first_page: int
    pages: int


@dataclass(frozen=True, slots=True)
class Data:
    """The content of an offer. `corrupted`: its checksum will not agree."""

    first_page: int
    pages: tuple[bytes, ...]
    corrupted: bool = False


@dataclass(frozen=True, slots=True)
class Final:
    """Nothing more comes after `offers` offers; of embeddings there is no record."""

    continuation: Continuation | None
    offers: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The staging ended before it was released."""

    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """The puller has everything."""


@dataclass(frozen=True)
class Surroundings:
    """What a producer or consumer knows of its instance.

    Attributes:
        post: hands an event to the core.
        call: runs a job on the device loop, between two steps.
        settled: when the device will have done all that it was given until now.
    """

    process: Process
    loop: EventLoop
    network: Network
    device: Device
    config: TransferConfig
    post: Callable[[InstanceEvent], None]
    call: Callable[[Callable[[], None]], None]
    settled: Callable[[], float]

"""Instances: who they are, what they can do, how loaded they say they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """A stage that an instance executes."""

    ENCODE = "encode"
    PREFILL = "prefill"
    DECODE = "decode"


class TransportKind(StrEnum):
    """How KV moves between two instances (design.md, Transfer)."""

    LOCAL = "local"
    DEVICE = "device"
    GRPC = "grpc"


@dataclass(frozen=True, order=True)
class InstanceRef:
    """Identity = name + epoch. The epoch is a random 63-bit incarnation number: a restarted instance is a new peer."""

    id: str
    epoch: int


@dataclass(frozen=True)
class Capacity:
    """Fixed limits of an instance, declared at registration.

    `media_pages`: pages of embeddings that it can hold (page_size embeddings each); 0: it takes no media. `max_patches`: the most patches of
    one item that it can encode; 0: it encodes nothing.
    """

    max_num_seqs: int
    num_pages: int
    page_size: int
    max_model_len: int
    media_pages: int = 0
    max_patches: int = 0


@dataclass(frozen=True)
class Compatibility:
    """What two instances must agree on before one may feed the other. Compared field by field; a mismatch names the fields."""

    protocol: int
    model: str
    revision: str
    kv_dtype: str
    page_size: int
    kv_layout: str
    media_layout: str = ""

    def difference(self, other: Compatibility) -> list[str]:
        """Readable lines, one per field that differs; empty when compatible."""
        names = ("protocol", "model", "revision", "kv_dtype", "page_size", "kv_layout", "media_layout")
        return [
            f"{n}: {getattr(self, n)!r} != {getattr(other, n)!r}"
            for n in names
            if getattr(self, n) != getattr(other, n)
        ]


@dataclass(frozen=True)
class InstanceInfo:
    """Registration record of one instance.

    `worker` names the process that owns it; `address` is the gRPC endpoint of that process (Worker and Transfer services).
    `transports` are the transports it can *serve*, best first; `domain` names what `local` reaches (one process).
    `switchable` are roles beyond `roles` that it can take on later without compiling anything.
    """

    ref: InstanceRef
    worker: str
    address: str
    roles: frozenset[Role]
    capacity: Capacity
    compatibility: Compatibility
    tp: int = 1
    transports: tuple[TransportKind, ...] = (TransportKind.GRPC,)
    domain: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    switchable: frozenset[Role] = frozenset()


@dataclass(frozen=True)
class Load:
    """A snapshot of an instance's occupancy. Soft: routing uses it, admission never trusts it.

    `share`: most prompt tokens that it computes a step now (SetShare); 0 where that is not known. `encoding`: patches that wait to be encoded.
    """

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    free_pages: int = 0
    free_slots: int = 0
    staged: int = 0
    share: int = 0
    free_media_pages: int = 0
    encoding: int = 0

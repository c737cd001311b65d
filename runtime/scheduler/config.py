"""The scheduler's limits and times."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of the control plane; all times in seconds.

    Attributes:
        max_queued: requests that may wait for an instance; the next one is refused with RESOURCE_EXHAUSTED and `retry_after`. Those that go on
            after a loss always wait, however many they are: they were admitted.
        max_active: requests that may be placed at once. Instances bound their own memory; this bounds the scheduler's.
        heartbeat_interval: how often workers are told to send a sign of life.
        heartbeat_timeout: silence after which a worker is declared dead. Ten missed heartbeats by default: a process killed outright
            is noticed at once by the end of its stream, so this only finds hangs and partitions, where haste costs live requests.
        reserve_ttl: how long a decode reservation is held without StartDecode. Prefill answers at once, so this covers only lost answers.
        lease_seconds: how long staged KV outlives the puller's last sign of life.
        retry_after: the hint that accompanies every refusal for lack of room.
        reopen_after: an instance that refused for lack of room is asked again at the latest after this time, even if nothing that the
            scheduler can see has changed there.
        lookahead: waiting requests that are tried when the first in line does not fit. Larger values use instances better when
            requests need different instances; they never let a request overtake one that needs the same instance.
        max_attempts: attempts of one request, the first included; the loss of the last one is its failure.
        patience: how long a request waits while no placement could ever serve it (no instance of a role left, or none yet), and for a Resume.
        rejoin_grace: how long a worker whose stream broke without a good-bye may take to come back with what it held, before that is taken
            for lost. A broken stream does not tell a dead process from a cut connection. A living worker is back after its first retry, 0.1 s;
            waiting five times that long for a dead one delays recovery less than recomputing the KV of a whole worker would cost. 0: no grace.
        adopt_grace: how long, after a restart of the scheduler, a declared request and the task that runs it may take to find each other.
        gateway_grace: how long the requests of a gateway whose stream broke go on, until it is back and has declared them.
        pixel_ttl: how long an encode instance waits for the pixels of an item, which the request's gateway brings.
        encode_answer: how long an encode instance may take to answer before others are asked for the same items. It answers between two steps:
            one that takes so long hangs, though its worker lives.
        max_encodes: how often one item is given to an encode instance in one attempt, refusals for lack of room not counted. It is wanted again
            when an encode instance dies or a pull fails; a cluster in which that happens so often does not get the item encoded.
        remembered_media: hashes of which the scheduler remembers where they were encoded last, about 200 bytes each.
        drain_grace: how long the tasks of a draining instance may take to end by themselves before they go on elsewhere.
        switch_timeout: how long an empty instance may take to change roles, or to end.
    """

    max_queued: int = 4096
    max_active: int = 16384
    heartbeat_interval: float = 0.5
    heartbeat_timeout: float = 5.0
    reserve_ttl: float = 10.0
    lease_seconds: float = 10.0
    retry_after: float = 1.0
    reopen_after: float = 0.5
    lookahead: int = 16
    max_attempts: int = 5
    patience: float = 30.0
    rejoin_grace: float = 0.5
    adopt_grace: float = 3.0
    gateway_grace: float = 5.0
    pixel_ttl: float = 10.0
    encode_answer: float = 10.0
    max_encodes: int = 8
    remembered_media: int = 65536
    drain_grace: float = 30.0
    switch_timeout: float = 60.0

    def __post_init__(self) -> None:
        """Raises ConfigError naming every value that is out of range."""
        wrong = [
            f"{name} is {getattr(self, name)}; expected more than 0"
            for name in (*_COUNTS, *_TIMES)
            if not getattr(self, name) > 0
        ]
        wrong += [
            f"{name} is {getattr(self, name)}; expected 0 or more" for name in _GRACES if not getattr(self, name) >= 0
        ]
        if self.heartbeat_timeout < 2 * self.heartbeat_interval:
            wrong.append(
                f"heartbeat_timeout is {self.heartbeat_timeout}; expected at least twice heartbeat_interval ({self.heartbeat_interval}), "
                "or one late heartbeat would end a worker"
            )
        if wrong:
            raise ConfigError("; ".join(wrong))


_COUNTS = ("max_queued", "max_active", "lookahead", "max_attempts", "max_encodes", "remembered_media")
_TIMES = (
    "heartbeat_interval",
    "heartbeat_timeout",
    "reserve_ttl",
    "lease_seconds",
    "retry_after",
    "reopen_after",
    "patience",
    "pixel_ttl",
    "encode_answer",
    "switch_timeout",
)
_GRACES = ("rejoin_grace", "adopt_grace", "gateway_grace", "drain_grace")

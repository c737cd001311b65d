"""Which host of how many a process is, and what an instance over several of them cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role, TransportKind

if TYPE_CHECKING:
    from triptych.runtime.worker.config import WorkerConfig

BLAME = 1.0  # seconds that a device program that failed waits for news of a lost host, whose collectives fail everywhere: that is the reason to give
BEAT = 1.0  # seconds between signs of life
SILENCE = 15.0  # seconds without one after which a host is dead: tracing and reading weights may keep a process from its streams for some
START_LIMIT = 900.0  # seconds; a large model is read and compiled in some minutes


@dataclass(frozen=True)
class HostsConfig:
    """One of the hosts of an instance.

    Attributes:
        count: hosts, at least two.
        index: of this one; 0 is the leader.
        leader: host:port at which followers find the leader, and at which the leader listens.
        platform: of the devices, as jax calls it (cpu, gpu, tpu): to be known before jax looks for them.
        start_seconds: how long hosts wait for one another while they start.
    """

    count: int
    index: int
    leader: str
    platform: str
    start_seconds: float = START_LIMIT

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(
                f"an instance over {self.count} hosts is none over several; leave the number of hosts out"
            )
        if not 0 <= self.index < self.count:
            raise ConfigError(f"host {self.index} of {self.count}: indices are 0 (the leader) to {self.count - 1}")
        host, _, port = self.leader.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"the leader's address is {self.leader!r}; expected HOST:PORT, the same on every host")
        if self.start_seconds <= 0:
            raise ConfigError(f"hosts wait {self.start_seconds} s for one another; expected more than 0")

    @property
    def leads(self) -> bool:
        return self.index == 0

    @property
    def leader_host(self) -> str:
        """Without the brackets of an IPv6 address."""
        return self.leader.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.leader.rpartition(":")[2])

    def devices_of(self, tp: int) -> int:
        """Devices of each host for an instance of `tp`. Raises ConfigError if they cannot be equally many."""
        if tp % self.count:
            raise ConfigError(f"{tp} devices cannot be shared out equally to {self.count} hosts")
        return tp // self.count


def check_hosts(config: WorkerConfig, hosts: HostsConfig) -> None:
    """Raises ConfigError for what an instance over several hosts cannot do."""
    if len(config.instances) != 1:
        raise ConfigError(
            f"hosts share one instance; this worker has {', '.join(plan.id for plan in config.instances)}"
        )
    (plan,) = config.instances
    hosts.devices_of(plan.tp)
    for wrong, why in (
        (Role.ENCODE in plan.possible, "encodes: media are encoded on one host"),
        (config.kv_layer_groups is not None, "offers KV by layer groups: over several hosts it leaves in one piece"),
        (config.speculation is not None and config.speculation.model is not None, "has a draft model: over several hosts tokens are guessed by n-grams only"),
        (config.pace is not None, "takes its step times from a table: over several hosts it takes those of its devices"),
        (config.transports != (TransportKind.GRPC,), "moves KV by more than gRPC: over several hosts it goes through the leader, by grpc"),
        (
            config.tls is not None and not config.device_without_tls,
            "has TLS: what devices of several hosts say to each other cannot be encrypted; allow it explicitly",
        ),
    ):  # fmt: skip
        if wrong:
            raise ConfigError(f"{plan.id} is on {hosts.count} hosts and {why}")

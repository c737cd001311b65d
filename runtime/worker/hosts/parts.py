"""What a host of several brings to the building of an instance (build.py): devices of all hosts, and an engine and a mover that share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.decoders import ServedDecoder
from triptych.runtime.worker.hosts.config import HostsConfig
from triptych.runtime.worker.hosts.engine import LeadingEngine, SpreadEngine
from triptych.runtime.worker.hosts.follower import Follower
from triptych.runtime.worker.hosts.job import join_job, shared_devices
from triptych.runtime.worker.hosts.leader import Leader
from triptych.runtime.worker.hosts.page_mover import LeadingPageMover, SpreadPageMover
from triptych.sharding.devices import Device


class SharedHost(Protocol):
    """One of the hosts of an instance. Everything is called on the thread that builds it."""

    def devices(self, tp: int) -> Sequence[Device]:
        """The mesh's, of all hosts."""
        ...

    def meet(self, point: str, number: int = 0) -> int:
        """Wait for the others to come to `point`; the least number of all."""
        ...

    def engine(self, config: EngineConfig, loaded: ServedDecoder, mesh: Mesh) -> SpreadEngine: ...

    def mover(self, *args: Any, **named: Any) -> SpreadPageMover:
        """Arguments are those of PageMover."""
        ...


class LeadingHost:
    """The leader. `port` is that of jax's coordination service, which listens on address `bind`."""

    def __init__(self, hosts: HostsConfig, link: Leader, port: int, bind: str):
        self._hosts, self._link, self._port, self._bind = hosts, link, port, bind
        self.meet = link.meet

    def devices(self, tp: int) -> Sequence[Device]:
        join_job(self._hosts, self._port, self._bind)
        return shared_devices(self._hosts, tp)

    def engine(self, config: EngineConfig, loaded: ServedDecoder, mesh: Mesh) -> SpreadEngine:
        return LeadingEngine(config, loaded, mesh, lambda: self.meet("compiled"), self._link)

    def mover(self, *args: Any, **named: Any) -> SpreadPageMover:
        return LeadingPageMover(self._link, *args, **named)


class FollowingHost:
    """A follower. `port` is that of jax's coordination service on the leader's host."""

    def __init__(self, hosts: HostsConfig, link: Follower, port: int):
        self._hosts, self._port = hosts, port
        self.meet = link.meet

    def devices(self, tp: int) -> Sequence[Device]:
        join_job(self._hosts, self._port)
        return shared_devices(self._hosts, tp)

    def engine(self, config: EngineConfig, loaded: ServedDecoder, mesh: Mesh) -> SpreadEngine:
        return SpreadEngine(config, loaded, mesh, lambda: self.meet("compiled"))

    def mover(self, *args: Any, **named: Any) -> SpreadPageMover:
        return SpreadPageMover(*args, **named)

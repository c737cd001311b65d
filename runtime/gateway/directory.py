"""The instances that the scheduler announced, and whether they can serve a request together."""

from __future__ import annotations

from triptych.runtime.core.control import Directory
from triptych.runtime.core.instance import Role


def worker_addresses(directory: Directory) -> frozenset[str]:
    """The workers whose tokens a gateway must subscribe to."""
    return frozenset(info.address for info in directory.instances)


def servable(directory: Directory, subscribed: frozenset[str]) -> bool:
    """Whether some instance can prefill and a compatible one can decode, and the tokens of both reach this gateway."""
    reachable = [info for info in directory.instances if info.address in subscribed]
    prefills = {info.compatibility for info in reachable if Role.PREFILL in info.roles}
    return any(Role.DECODE in info.roles and info.compatibility in prefills for info in reachable)

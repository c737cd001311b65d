"""The jax.distributed job of an instance over several hosts: one process a host, their devices in one mesh.

jax's coordination service runs in the leader's process. It and the collectives between hosts are neither authenticated nor encrypted; `check_hosts` says
when that is refused.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import jax

from triptych.runtime.core.errors import ConfigError, InstanceLostError
from triptych.runtime.wire.listening import endpoint
from triptych.runtime.worker.hosts.config import HostsConfig
from triptych.sharding.devices import Device


def free_port(host: str) -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        return server.getsockname()[1]


def join_job(hosts: HostsConfig, port: int, bind: str | None = None) -> None:
    """Become process `hosts.index` of the job whose coordination service listens on `port` of the leader's host (there on address `bind`).

    Before jax has looked for devices. Waits for all hosts. Raises InstanceLostError if they do not come, ConfigError if the devices are others
    than expected.
    """
    if hosts.platform == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # With a single device a process, programs that do not depend on each other run at once, and their collectives would meet in any order.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from the process
    try:
        jax.distributed.initialize(
            endpoint(hosts.leader_host, port),
            num_processes=hosts.count,
            process_id=hosts.index,
            initialization_timeout=max(1, int(hosts.start_seconds)),
            cluster_detection_method="deactivate",  # a process a host, with all of its devices, whatever started it
            coordinator_bind_address=None if bind is None else endpoint(bind, port),
        )
    except RuntimeError as error:  # jax's own: its type differs with what went wrong
        raise InstanceLostError(f"host {hosts.index} of {hosts.count} cannot join the jax job: {error}") from error
    if jax.default_backend() != hosts.platform:
        raise ConfigError(
            f"host {hosts.index} has devices of {jax.default_backend()}, expected {hosts.platform}; name them with --device"
        )
    if jax.process_index() != hosts.index:
        raise ConfigError(
            f"this is host {hosts.index} of the instance and process {jax.process_index()} for its devices; give both the same number "
            "(on TPUs that of TPU_WORKER_ID)"
        )


def shared_devices(hosts: HostsConfig, tp: int) -> Sequence[Device]:
    """The mesh's devices: equally many of each host, host by host. Raises ConfigError if a host has fewer."""
    share, chosen = hosts.devices_of(tp), []
    for index in range(hosts.count):
        own = [device for device in jax.devices() if device.process_index == index]
        if len(own) < share:
            raise ConfigError(
                f"host {index} has {len(own)} devices, {tp} over {hosts.count} hosts take {share} of each"
            )
        chosen += own[:share]
    return chosen

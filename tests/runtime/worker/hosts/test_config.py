"""What an instance over several hosts cannot do is refused before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.instance.speculation import Speculation
from triptych.runtime.worker.build import open_worker_model
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.runtime.worker.hosts.config import HostsConfig
from triptych.runtime.worker.hosts.settings import differences, shared_settings

PD = frozenset({Role.PREFILL, Role.DECODE})
HOSTS = HostsConfig(2, 0, "10.0.0.1:8440", "cpu")


def config(**changes: Any) -> WorkerConfig:
    plan = changes.pop("plan", InstancePlan("pd", PD, 4))
    given = {"transports": (TransportKind.GRPC,), "hosts": HOSTS} | changes
    return WorkerConfig("w", "127.0.0.1:1", (plan,), "dummy:toy", Path("/nonexistent"), "toy", **given)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"plan": InstancePlan("pd", PD, 3)}, "3 devices cannot be shared out equally to 2 hosts"),
        ({"plan": InstancePlan("e", frozenset({Role.ENCODE, Role.PREFILL}), 4)}, "e is on 2 hosts and encodes"),
        ({"kv_layer_groups": 1}, "by layer groups"),
        ({"speculation": Speculation(4, model="dummy:toy-draft")}, "guessed by n-grams only"),
        ({"pace": lambda plan: 0.0}, "step times"),
        ({"transports": (TransportKind.DEVICE, TransportKind.GRPC)}, "by more than gRPC"),
        ({"tls": object()}, "cannot be encrypted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(**changes)


def test_hosts_share_one_instance() -> None:
    with pytest.raises(ConfigError, match="hosts share one instance; this worker has pd, d"):
        replace(config(), instances=(InstancePlan("pd", PD, 4), InstancePlan("d", PD, 4)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"count": 1}, "none over several"),
        ({"index": 2}, r"host 2 of 2: indices are 0 \(the leader\) to 1"),
        ({"leader": "10.0.0.1"}, "expected HOST:PORT"),
        ({"leader": "10.0.0.1:0"}, "expected HOST:PORT"),
        ({"start_seconds": 0}, "expected more than 0"),
    ],
)
def test_hosts_that_cannot_be_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        replace(HOSTS, **changes)


def test_an_ipv6_leader_is_found() -> None:
    hosts = replace(HOSTS, leader="[fd00::1]:8440")
    assert (hosts.leader_host, hosts.port) == ("fd00::1", 8440)


def test_hosts_differ_by_what_their_devices_compute_and_by_nothing_else() -> None:
    ours = config()
    mine = shared_settings(ours, open_worker_model(ours))
    other = config(
        max_num_seqs=4, plan=InstancePlan("elsewhere", PD, 2), hosts=replace(HOSTS, index=1), heartbeat_interval=9.0
    )
    found = differences(mine, shared_settings(other, open_worker_model(other)))
    assert found == ["max_num_seqs is 4, the leader has 8", "tp is 2, the leader has 4"]


def test_another_model_is_a_difference() -> None:
    ours, other = config(), replace(config(), model="dummy:smollm2-135m")
    found = differences(
        *(shared_settings(chosen, open_worker_model(chosen)) for chosen in (ours, other)),
    )
    assert {line.split()[0] for line in found} == {"architecture", "model"}


@pytest.mark.parametrize("model", ["dummy:toy-vlm", "dummy:toy-whisper"])
def test_models_of_media_and_of_speech_are_refused(model: str) -> None:
    chosen = replace(config(), model=model)
    with pytest.raises(ConfigError, match="takes media"):
        shared_settings(chosen, open_worker_model(chosen))


def test_the_text_part_of_a_vision_language_model_is_served() -> None:
    chosen = replace(config(), model="dummy:toy-vlm", media_pages=0)
    assert shared_settings(chosen, open_worker_model(chosen))["media_pages"] == "0"

"""What is wrong with settings: fields out of their range, and pairs that cannot both hold."""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.models.kernels.names import kv_problem
from triptych.models.kv import KV_CODES
from triptych.runtime.core import topology as topologies
from triptych.runtime.core.instance import Role
from triptych.tools.settings import split_secrets

if TYPE_CHECKING:
    from triptych.tools.config import ServeConfig


def out_of_range(c: ServeConfig) -> list[str]:
    """One line per field that is wrong by itself."""
    problems = []
    positive = (
        "max_model_len", "tensor_parallel_size", "prefill_tp", "decode_tp", "encode_tp", "emulate_devices", "max_num_seqs", "max_num_batched_tokens",
        "page_size", "num_pages", "kv_cache_memory", "max_message_mb", "max_waiting", "max_prompt_tokens", "request_timeout", "media_processes",
        "heartbeat_interval", "heartbeat_timeout", "lease_seconds", "startup_timeout", "max_attempts", "patience",
        "speculative_tokens", "max_in_flight", "rate_limit", "rate_burst", "max_media_mb", "spare_media_mb", "max_media_item_mb", "max_image_pixels", "max_video_frames",
    )  # fmt: skip
    for name in positive:
        value = getattr(c, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            problems.append(f"{name} is {value}; expected a positive number")
    if not re.fullmatch("all|auto|[1-9][0-9]*", c.kv_layer_groups):
        problems.append(f"kv_layer_groups is {c.kv_layer_groups!r}; expected a positive number of layers, all or auto")
    for name in ("encode_patches", "media_memory"):
        if getattr(c, name) is not None and getattr(c, name) < 1:
            problems.append(f"{name} is {getattr(c, name)}; expected a positive number")
    if c.media_pages is not None and (c.media_pages < 0 or c.media_pages == 1):
        problems.append(f"media_pages is {c.media_pages}; expected 0 (no media), or 2 and more (one is reserved)")
    if not (math.isfinite(c.shutdown_timeout) and c.shutdown_timeout >= 0):
        problems.append(f"shutdown_timeout is {c.shutdown_timeout}; expected 0 or more")
    if not 0.0 < c.gpu_memory_utilization <= 1.0:
        problems.append(f"gpu_memory_utilization is {c.gpu_memory_utilization}; expected a share in (0, 1]")
    for name in ("port", "scheduler_port", "http_port", "metrics_port"):
        if getattr(c, name) is not None and not 0 <= getattr(c, name) <= 65535:
            problems.append(f"{name} is {getattr(c, name)}; expected 0 (any free port) to 65535")
    if not 0 <= c.seed < 2**64:
        problems.append(f"seed is {c.seed}; expected an unsigned 64-bit number")
    if not _is_host(c.host):
        problems.append(
            f"host is {c.host!r}; expected an IP address or a host name (the port has a setting of its own)"
        )
    if not c.model.strip():
        problems.append("model is empty; expected a name, folder or file")
    for name in ("api_key", "cluster_token"):
        given = getattr(c, name)
        if given is not None and (not split_secrets(given) or any(len(t.split()) != 1 for t in split_secrets(given))):
            problems.append(f"{name} must not be empty or contain white space")
    if c.chat_template is not None and not Path(c.chat_template).expanduser().is_file():
        problems.append(f"chat_template {c.chat_template!r} is not a file")
    try:
        topologies.parse(c.topology)
    except topologies.TopologyError as error:
        problems.append(error.message)
    return problems


def contradictions(c: ServeConfig) -> list[str]:
    """One line per pair of settings that cannot both hold."""
    problems = []
    try:
        plan = topologies.parse(c.topology)
    except topologies.TopologyError:
        return []
    if c.num_pages is not None and c.kv_cache_memory is not None:
        problems.append("num_pages and kv_cache_memory both size the KV pool; give one of them")
    if (problem := kv_problem(c.attention, KV_CODES.get(c.kv_cache_dtype, c.kv_cache_dtype))) is not None:
        problems.append(problem)
    if (c.speculative == "draft") != (c.speculative_model is not None):
        problems.append(
            f"speculative is {c.speculative!r} and speculative_model {c.speculative_model!r}; a draft model needs both: --speculative draft "
            "--speculative-model MODEL"
        )
    if c.heartbeat_timeout < 2 * c.heartbeat_interval:
        problems.append(
            f"heartbeat_timeout ({c.heartbeat_timeout} s) must be at least twice heartbeat_interval ({c.heartbeat_interval} s), "
            "or one late heartbeat ends a worker"
        )
    if c.kv_layer_groups == "auto" and c.kv_times is None:
        problems.append(
            "kv_layer_groups auto chooses from measured times: name them with kv_times (triptych bench-overlap)"
        )
    if c.max_prompt_tokens is not None and c.max_model_len is not None and c.max_prompt_tokens >= c.max_model_len:
        problems.append(
            f"max_prompt_tokens ({c.max_prompt_tokens}) leaves no room for output in max_model_len ({c.max_model_len})"
        )
    encoders = len(plan.instances()) > 1 and any(Role.ENCODE in spec.roles for spec in plan.instances())
    if (plan.disaggregated or encoders) and c.transport == "local" and c.processes != "one":
        problems.append(
            "transport local moves KV and embeddings inside one process; add --processes one, or take device or grpc"
        )
    if not plan.disaggregated and (c.prefill_tp is not None or c.decode_tp is not None):
        problems.append(f"prefill_tp and decode_tp mean nothing for topology {plan}; use tensor_parallel_size")
    specs = plan.instances()
    needed = c.devices_of(*specs) if c.processes == "one" else max(c.devices_of(s) for s in specs)
    if c.emulate_devices is not None and c.emulate_devices < needed:
        problems.append(
            f"emulate_devices is {c.emulate_devices}, but a process of topology {plan} needs {needed} devices"
        )
    if c.emulate_devices is not None and c.device not in ("auto", "cpu"):
        problems.append(f"emulate_devices is for the CPU, but device is {c.device}")
    return problems


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", text) is not None
    return True

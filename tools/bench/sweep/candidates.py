"""The topologies to compare: `2PD,1P1D,PD:tp2`. Options follow a topology after colons and hold for it alone.

    tp2, ptp2, dtp2, etp2   devices an instance; a prefill, decode, encode instance
    one, per-instance       processes (`triptych serve --processes`)
    NAME=VALUE              any other setting of serve, such as max_num_seqs=16

All must have equally many devices: a deployment with more of them is no better for being faster.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.tools.config import ServeConfig
from triptych.tools.settings import resolve

_TP = {"": "tensor_parallel_size", "p": "prefill_tp", "d": "decode_tp", "e": "encode_tp"}
_SAME = frozenset({"model", "max_model_len", "tokenizer", "topology", "device"})
"""Settings that decide what the load is, or what it is compared on: one value for all."""
_OWN = {"port": "0", "scheduler_port": "0", "http_port": "none", "metrics_port": "0"}
"""Settings that the sweep decides, because deployments come and go."""


@dataclass(frozen=True)
class Candidate:
    """One topology as the command line wrote it, and everything its deployment is told."""

    name: str
    config: ServeConfig

    @property
    def devices(self) -> int:
        return self.config.devices_of(*self.config.plan.instances())

    @property
    def monolithic(self) -> bool:
        """Whether every instance that computes tokens does all stages that anybody does: what the others are compared with."""
        roles = [spec.roles for spec in self.config.plan.instances()]
        return all(own == frozenset().union(*roles) for own in roles) and {Role.PREFILL, Role.DECODE} <= roles[0]


def parse_candidates(text: str, args: argparse.Namespace) -> tuple[Candidate, ...]:
    """The deployments that `text` names, with the settings of `args` otherwise.

    Raises:
        ConfigError: an option that is none, two candidates of one name, settings that contradict each other, or numbers
            of devices that differ; the message has each number.
    """
    names = [part.strip() for part in text.split(",")]
    if len(set(names)) < len(names):
        raise ConfigError(f"--topologies {text} names the same one twice")
    candidates = tuple(Candidate(name, _config(name, args)) for name in names)
    counts = {candidate.name: candidate.devices for candidate in candidates}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"topologies must have equally many devices to be compared, but they have: {shown}")
    return candidates


def _config(name: str, args: argparse.Namespace) -> ServeConfig:
    topology, *options = name.split(":")
    overrides = {"topology": topology, **_OWN}
    for option in options:
        overrides |= _option(name, option)
    try:
        config = resolve(ServeConfig, argparse.Namespace(**(vars(args) | overrides)))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}") from error
    if (
        config.api_key
        or config.api_key_file
        or config.cluster_token
        or config.cluster_token_file
        or config.ssl_certfile
    ):
        raise ConfigError("bench-sweep asks its own deployments of this host: leave out tokens and certificates")
    return config


def _option(name: str, option: str) -> dict[str, str]:
    if match := re.fullmatch(r"([pde]?)tp([1-9][0-9]*)", option):
        return {_TP[match[1]]: match[2]}
    if option in ("one", "per-instance"):
        return {"processes": option}
    key, equals, value = option.partition("=")
    key = key.replace("-", "_")
    known = {field.name for field in dataclasses.fields(ServeConfig)} - _OWN.keys()
    if not equals or key not in known:
        raise ConfigError(f"{name}: {option!r} is not tpN, ptpN, dtpN, etpN, one, per-instance or SETTING=VALUE")
    if key in _SAME:
        raise ConfigError(f"{name}: {key} must be the same for all; give it as a flag")
    return {key: value}

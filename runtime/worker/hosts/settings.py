"""What the hosts of an instance must have alike, and a readable difference where they have not.

Each host reads the model and compiles for itself. Programs that differ would wait for each other for ever, or add up numbers that do not belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from triptych import __version__
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.worker.config import WorkerConfig
from triptych.runtime.worker.media_parts import WorkerModel


def shared_settings(config: WorkerConfig, model: WorkerModel) -> Mapping[str, str]:
    """What must be alike on all hosts of an instance, by name: all that decides which programs run, and on what numbers.

    Raises ConfigError for a model that is not served over several hosts.
    """
    if model.speech is not None or (model.multimodal is not None and config.media_pages != 0):
        raise ConfigError(
            f"{config.model} takes media, which an instance over several hosts does not; media_pages 0 serves the text part of a vision-language model"
        )
    (plan,) = config.instances
    names = (
        "served_model_name", "load_dummy", "dtype", "weights", "kv_dtype", "max_model_len", "max_num_seqs", "chunk_tokens", "max_prefill_rows",
        "page_size", "num_pages", "kv_cache_memory", "memory_fraction", "media_pages", "export_pages", "attention", "speculation",
    )  # fmt: skip
    return {
        **{name: str(getattr(config, name)) for name in names},
        "model": model.bundle.revision,
        "architecture": model.bundle.config.fingerprint(),
        "roles": ", ".join(sorted(plan.roles)),
        "switchable": ", ".join(sorted(plan.switchable)),
        "tp": str(plan.tp),
        "platform": "" if config.hosts is None else config.hosts.platform,
        "version of triptych": __version__,
        **{f"version of {package}": version(package) for package in ("jax", "jaxlib")},
    }


def differences(leader: Mapping[str, str], follower: Mapping[str, str]) -> list[str]:
    """One line for each setting that differs, sorted by name."""
    return [
        f"{name} is {follower.get(name, 'unknown')!s}, the leader has {leader.get(name, 'unknown')!s}"
        for name in sorted(leader.keys() | follower.keys())
        if leader.get(name) != follower.get(name)
    ]

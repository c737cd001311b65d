"""`LLM`: a model in this process, for scripts and notebooks. No server to start, the same programs, scheduler and transfers as in one.

    with LLM("smollm2", topology="1P1D") as llm:
        for result in llm.generate(["Once upon a time", "The sea"], max_tokens=32, seed=1):
            print(result.text)

Everything runs in this interpreter, so a busy script slows decoding down; for serving, use `triptych serve`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from triptych import __version__
from triptych.models.hub.resolve import DEFAULT_MODEL, resolve_model
from triptych.runtime.client import AsyncClient, Result
from triptych.runtime.cluster.front import FrontConfig, open_served
from triptych.runtime.cluster.local import LocalCluster
from triptych.runtime.cluster.turns import in_turns
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.topology import parse
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.worker.config import DEFAULT_CONTEXT, InstancePlan, WorkerConfig
from triptych.sharding.devices import Device

DEFAULT_CACHE = Path("~/.cache/triptych")
IN_FLIGHT = 256  # prompts of one `generate` that are submitted at a time; the rest wait here instead of being refused


class LLM:
    """A model ready to generate. Use as a context manager, or call `close`.

    Args:
        model: as for `triptych serve`: smollm2, a folder, a .gguf file, dummy:<preset>, ORG/NAME.
        topology: "PD" (one instance does both stages), "1P1D", "2P1D", ...
        tp: devices of each instance.
        cache: where fetched models are kept.
        options: further fields of `WorkerConfig`: dtype, max_model_len, max_num_seqs, chunk_tokens, num_pages, ...

    Raises ConfigError if this process has too few devices, and what resolving and loading the model raise.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        topology: str = "PD",
        tp: int = 1,
        cache: Path = DEFAULT_CACHE,
        **options: Any,
    ):
        instances = tuple(
            InstancePlan(spec.id, spec.roles, tp, taking_turns=len(spec.loops) > 1)
            for spec in parse(topology).instances()
        )
        _cache_programs(cache.expanduser() / "compiled")
        _ensure_devices(sum(plan.tp for plan in instances))
        resolved = resolve_model(model, cache.expanduser())
        max_model_len = options.pop("max_model_len", DEFAULT_CONTEXT)
        served = open_served(resolved, name=resolved.name, max_model_len=max_model_len)
        dtype = options.pop("dtype", "float32" if jax.default_backend() == "cpu" else "bfloat16")
        worker = WorkerConfig(
            name="llm",
            scheduler="set by the cluster",
            instances=instances,
            model=model,
            cache=cache.expanduser(),
            served_model_name=resolved.name,
            dtype=dtype,
            kv_dtype=options.pop("kv_dtype", dtype),
            max_model_len=max_model_len,
            composer=options.pop("composer", "prompts-first"),  # results are whole: nobody reads along
            **options,
        )
        front = FrontConfig(
            "127.0.0.1",
            0,
            served,
            ServerFacts(__version__, topology),
            SchedulerConfig(max_queued=IN_FLIGHT),
            GatewayConfig("set by the front", default_timeout=24 * 3600.0),
        )
        self._cluster = LocalCluster(front, [worker])
        self._cluster.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the devices and stop every thread."""
        self._cluster.close()

    def generate(self, prompts: Sequence[str | Sequence[int]], **sampling: Any) -> list[Result]:
        """Complete many prompts (text or token ids), batched; results in the order of the prompts.

        Sampling keywords are those of the client; `images` and `videos` are shown to every prompt. Raises the first prompt's error if one fails.
        """
        requests = [{"prompt": p} if isinstance(p, str) else {"token_ids": list(p)} for p in prompts]
        return self._run(requests, sampling)

    def complete(self, prompt: str | Sequence[int], **sampling: Any) -> Result:
        """Complete one prompt."""
        return self.generate([prompt], **sampling)[0]

    def chat(self, conversations: Sequence[Sequence[Mapping[str, Any]]], **sampling: Any) -> list[Result]:
        """Answer conversations, each a list of {"role", "content"} (text, or a list of parts with images and videos), through the model's chat template."""
        return self._run([{"messages": list(messages)} for messages in conversations], sampling)

    def _run(self, requests: list[dict[str, Any]], sampling: dict[str, Any]) -> list[Result]:
        async def all_of_them() -> list[Result]:
            async with AsyncClient(self._cluster.address) as client:
                return await in_turns(
                    [partial(client.complete, **request, **sampling) for request in requests], IN_FLIGHT
                )

        return self._cluster.run(all_of_them())


def _cache_programs(folder: Path) -> None:
    """Keep compiled programs for the next start, unless this process already says where."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _ensure_devices(needed: int) -> None:
    """Emulate CPU devices if that is what this process has and it has too few; must come before the first use of jax."""
    if len(_devices_emulating(needed)) < needed:
        raise ConfigError(
            f"the topology needs {needed} devices and this process has {len(jax.devices())} ({jax.default_backend()}); on a CPU, make the "
            f"LLM before anything else uses jax, or set jax.config.update('jax_num_cpu_devices', {needed}) first"
        )


def _devices_emulating(count: int) -> Sequence[Device]:
    before = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
    try:
        jax.config.update("jax_num_cpu_devices", count)  # refused once jax is in use: what there is must do
        return jax.devices()
    except RuntimeError:
        with contextlib.suppress(RuntimeError):
            jax.config.update(
                "jax_num_cpu_devices", before
            )  # or XLA_FLAGS says how many, and jax wants only one of the two
        return jax.devices()

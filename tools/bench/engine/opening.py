"""The model of a run on its devices, and where its programs are kept."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax

from triptych.models.hub.bundle import open_model
from triptych.models.hub.errors import ModelFetchError
from triptych.models.hub.resolve import resolve_model
from triptych.models.kernels.auto import kernel_for
from triptych.models.weights.load import load_decoder
from triptych.runtime.core.errors import ConfigError
from triptych.sharding.mesh import make_mesh
from triptych.tools.bench.engine.rig import Rig
from triptych.tools.bench.engine.startup import chosen_dtype


def open_rig(args: argparse.Namespace, tell: Callable[[str], None]) -> Rig:
    """The model that the flags of `bench-engine` name, on its devices. Raises ConfigError for one that is not there."""
    cache = Path(args.cache_dir).expanduser()
    keep_programs(cache / "compiled")
    devices = jax.devices()
    if len(devices) < args.tp:
        raise ConfigError(f"--tp {args.tp}: this machine has {len(devices)} devices ({jax.default_backend()})")
    dtype = chosen_dtype(args.dtype, devices[0].platform)
    try:
        bundle = open_model(resolve_model(args.model, cache, progress=tell))
    except (ModelFetchError, OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    mesh = make_mesh(devices[: args.tp], args.tp)
    began = time.perf_counter()
    loaded = load_decoder(bundle.config, bundle.tensor_source, mesh, dtype, args.weights)
    tell(f"{loaded.nbytes() / 1e9:.2f} GB of weights in {time.perf_counter() - began:.1f} s")
    attention = kernel_for(args.attention, devices[0], args.page_size, bundle.config.head_dim)
    sizes = (args.page_size, attention, args.compile_threads, args.seconds)
    return Rig(loaded, mesh, dtype, *sizes, tell, args.kv_cache_dtype)


def keep_programs(folder: Path) -> None:
    """Compiled programs are kept for the next run, unless this process already says where."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

"""`triptych calibrate`: measure the real engine on this machine and write the step table that `triptych simulate
--table` reads."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.simulation.steptime_table import Limits, StepTable
from triptych.runtime.worker.config import read_by_compilers
from triptych.tools.config import ServeConfig
from triptych.tools.reports import check_outputs
from triptych.tools.simulate_media import ENCODE_PATCHES, image_size

DEFAULT_CACHE = ServeConfig().cache_dir
_ROLES = {
    "prefill": frozenset({Role.PREFILL}),
    "decode": frozenset({Role.DECODE}),
    "both": frozenset({Role.PREFILL, Role.DECODE}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="smollm2", help="smollm2, a folder or .gguf file, dummy:<preset> (default smollm2)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table to write, JSON")
    engine = parser.add_argument_group("engine: as it will be served")
    engine.add_argument("--max-num-seqs", type=int, default=8, help="most sequences in a step (default 8)")
    engine.add_argument("--max-model-len", type=int, default=2048, help="longest sequence (default 2048)")
    engine.add_argument("--max-num-batched-tokens", type=int, default=256, help="prefill tokens a step (default 256)")
    engine.add_argument("--max-prefill-rows", type=int, default=4, help="prompts in a step (default 4)")
    engine.add_argument("--page-size", "--block-size", type=int, default=16)
    engine.add_argument("--num-pages", type=int, help="pages of the pool (default: what the longest sequences need)")
    engine.add_argument("--roles", choices=tuple(_ROLES), default="both", help="which programs exist (default both)")
    engine.add_argument(
        "--encode-patches", type=int, help="patches a step of encodes (default 2048, or one image; multimodal models)"
    )
    engine.add_argument(
        "--image-size", type=image_size, default=(448, 448), metavar="WxH", help="pixels of images (default 448x448)"
    )
    engine.add_argument("--tp", type=int, default=1, help="devices of the instance (default 1)")
    engine.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: float32 on CPU, else bfloat16"
    )
    engine.add_argument(
        "--cache-dir", default=DEFAULT_CACHE, help=f"where fetched models are kept (default {DEFAULT_CACHE})"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="time for each program at each of its two ends (default 1)"
    )


def run(args: argparse.Namespace) -> int:
    limits = ("max_num_seqs", "max_model_len", "max_num_batched_tokens", "max_prefill_rows", "page_size", "tp")
    if wrong := [name for name in limits if getattr(args, name) < 1]:
        raise ConfigError(f"{', '.join('--' + name.replace('_', '-') for name in wrong)} must be positive")
    if not 0 <= args.seconds < math.inf:
        raise ConfigError(f"--seconds is {args.seconds}; expected 0 or more")
    check_outputs(args.out)
    import jax

    from triptych.models.hub.bundle import open_model
    from triptych.models.hub.errors import ModelFetchError
    from triptych.models.hub.media import open_multimodal
    from triptych.models.hub.resolve import resolve_model
    from triptych.models.kernels.auto import kernel_for
    from triptych.models.kernels.names import AUTO_KERNEL
    from triptych.models.kv import bytes_per_token, kv_groups
    from triptych.models.weights.load import load_decoder
    from triptych.runtime.engine.buckets import RAGGED_DECODE_COST
    from triptych.runtime.engine.config import engine_config
    from triptych.runtime.engine.engine import Engine
    from triptych.runtime.engine.kept_programs import kept_beside_the_cache
    from triptych.sharding.mesh import make_mesh
    from triptych.tools import calibration, calibration_encode

    devices = jax.devices()
    if len(devices) < args.tp:
        raise ConfigError(f"--tp {args.tp}: this machine has {len(devices)} devices ({jax.default_backend()})")
    dtype = args.dtype if args.dtype != "auto" else "float32" if devices[0].platform == "cpu" else "bfloat16"
    try:
        resolved = resolve_model(args.model, Path(args.cache_dir).expanduser(), progress=_tell)
        bundle, multimodal = open_model(resolved), open_multimodal(resolved)
    except (ModelFetchError, OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    mesh = make_mesh(devices[: args.tp], args.tp)
    loaded = load_decoder(bundle.config, bundle.tensor_source, mesh, dtype)
    longest = min(args.max_model_len, bundle.config.max_position)
    width = -(-longest // args.page_size)
    pages = args.num_pages or 1 + width * (args.max_num_seqs + args.max_prefill_rows)
    config = engine_config(
        num_pages=pages,
        max_num_seqs=args.max_num_seqs,
        max_model_len=longest,
        chunk_tokens=args.max_num_batched_tokens,
        page_size=args.page_size,
        max_prefill_rows=args.max_prefill_rows,
        kv_dtype=dtype,
        roles=_ROLES[args.roles],
        prompt_logprobs=False,
        attention=kernel_for(AUTO_KERNEL, devices[0], args.page_size, bundle.config.head_dim),
    )
    engine = Engine(config, loaded, mesh)
    # Fidelity measures the same engine several times, in processes that each have one core.
    made_from = (bundle.config, bundle.revision, dtype, args.tp, replace(config, compile_threads=1))
    report = engine.compile(
        kept=kept_beside_the_cache(made_from, list(mesh.devices.flat), read_by_compilers(os.environ))
    )
    _tell(f"compiled {report.programs} programs in {report.seconds:.1f} s")
    began = time.monotonic()
    programs = calibration.measure_programs(
        engine, args.seconds, lambda name, done, total: _tell(f"{done}/{total} {name}")
    )
    encode = None
    if multimodal is not None:
        picture = calibration_encode.picture_of(multimodal, *args.image_size)
        patches = args.encode_patches or max(ENCODE_PATCHES, picture.slots)
        encoder = calibration_encode.make_engine(resolved, multimodal, mesh, dtype, args.page_size, patches, picture)
        _tell(f"compiled {encoder.compile().programs} programs of the encoder")
        encode = calibration_encode.measure_encoder(
            encoder, picture, encoder.media.sizes, dtype, args.seconds,
            lambda name, done, total: _tell(f"{done}/{total} {name}"),
        )  # fmt: skip
    table = StepTable(
        limits=Limits(
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            chunk_tokens=config.chunk_tokens,
            max_prefill_rows=config.max_prefill_rows,
            num_pages=config.num_pages,
            kv_bytes_per_token=bytes_per_token(kv_groups(bundle.config, dtype)),
        ),
        programs=programs,
        ragged_decode_cost=RAGGED_DECODE_COST,
        sample=calibration.measure_sample(engine, args.seconds),
        idle=calibration.measure_idle(engine),
        host=calibration.measure_host(engine, args.seconds),
        encode=encode,
        facts={
            "model": args.model,
            "roles": args.roles,
            "tp": args.tp,
            "dtype": dtype,
            "device": devices[0].device_kind,
            "machine": platform.processor() or platform.machine(),
            "jax": jax.__version__,
            "seconds": time.monotonic() - began,
        },
    )
    args.out.write_text(table.as_json())
    print(describe(table))
    return 0


def describe(table: StepTable) -> str:
    """The table for people: a line a program."""
    lines = [f"{'decode':>7}{'prefill':>9}{'width':>7}{'low ms':>10}{'high ms':>10}{'spread':>9}"]
    for p in table.programs:
        spread = max(p.low.spread, p.high.spread)
        lines.append(
            f"{p.decode_rows:>7}{p.prefill_tokens:>9}{p.width:>7}{p.low.median * 1e3:>10.3f}{p.high.median * 1e3:>10.3f}{spread:>9.1%}"
        )
    if table.encode is not None:
        patches, tokens = table.encode.image
        lines += [f"encode of {size} patches {seconds * 1e3:.3f} ms" for size, seconds in table.encode.sizes]
        lines.append(f"an image has {patches} patches and {tokens} embeddings of {table.encode.embedding_bytes} bytes")
    host = table.host
    lines.append(
        f"sample {table.sample * 1e3:.3f} ms, idle start {table.idle * 1e3:.3f} ms, host {host.step * 1e3:.3f} ms a step + "
        f"{host.row * 1e6:.1f} us a row, {host.hidden:.0%} of it hidden"
    )
    return "\n".join(lines)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""`triptych floor`: one decode step of a model against the time that its bytes need on this machine.

Decoding reads every weight once a step and the KV of every sequence. Those bytes over the best measured bandwidth (bandwidth.py) are the floor:
no program can be faster without moving less. The ratio says how much is left to gain. Steps are dispatched one ahead, as the server does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.models.weight_formats import AUTO, WEIGHT_FORMATS
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.instance.plan import Draw, Row, Seat, StepPlan
from triptych.tools.config import ServeConfig
from triptych.tools.reports import check_outputs

if TYPE_CHECKING:
    from triptych.models.weights.load import LoadedDecoder
    from triptych.runtime.engine.engine import Engine

DEFAULT_CACHE = ServeConfig().cache_dir


@dataclass(frozen=True)
class Floor:
    """Bytes of one decode step on one device, and what they cost at `bandwidth` (bytes per second)."""

    parameter_bytes: int
    kv_bytes: int
    bandwidth: float

    @property
    def seconds(self) -> float:
        return (self.parameter_bytes + self.kv_bytes) / self.bandwidth


WINDOW = 5  # steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="smollm2", help="smollm2, a folder or .gguf file, dummy:<preset> (default smollm2)"
    )
    parser.add_argument("--batch", type=int, default=1, help="sequences in the step (default 1)")
    parser.add_argument("--context", type=int, default=256, help="tokens in each sequence (default 256)")
    parser.add_argument("--steps", type=int, default=50, help="steps to time (default 50)")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: float32 on CPU, else bfloat16"
    )
    parser.add_argument(
        "--weights", choices=(AUTO, *WEIGHT_FORMATS), default=AUTO, help="how matrices are stored; auto: in dtype"
    )
    parser.add_argument("--page-size", "--block-size", type=int, default=16)
    parser.add_argument(
        "--cache-dir", default=DEFAULT_CACHE, help=f"where fetched models are kept (default {DEFAULT_CACHE})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    if min(args.batch, args.context, args.steps, args.page_size) < 1:
        raise ConfigError("--batch, --context, --steps and --page-size must be positive")
    check_outputs(args.json)
    import jax

    from triptych.models.hub.bundle import open_model
    from triptych.models.hub.errors import ModelFetchError
    from triptych.models.hub.resolve import resolve_model
    from triptych.models.kernels.auto import kernel_for
    from triptych.models.kernels.names import AUTO_KERNEL
    from triptych.models.kv import bytes_per_token, kv_groups
    from triptych.models.weights.load import load_decoder
    from triptych.runtime.engine.buckets import Buckets, ExtendShape
    from triptych.runtime.engine.config import engine_config
    from triptych.runtime.engine.engine import Engine
    from triptych.sharding.mesh import make_mesh
    from triptych.tools.bench.bandwidth import measure

    device = jax.devices()[0]
    dtype = args.dtype if args.dtype != "auto" else "float32" if device.platform == "cpu" else "bfloat16"
    try:
        bundle = open_model(resolve_model(args.model, Path(args.cache_dir).expanduser(), progress=_tell))
        mesh = make_mesh([device], 1)
        loaded = load_decoder(bundle.config, bundle.tensor_source, mesh, dtype, args.weights)
    except (ModelFetchError, OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    pages = -(-(args.context + 1) // args.page_size)
    config = engine_config(
        num_pages=1 + pages * args.batch,
        max_num_seqs=args.batch,
        max_model_len=pages * args.page_size,
        chunk_tokens=args.page_size,
        page_size=args.page_size,
        kv_dtype=dtype,
        roles=frozenset({Role.DECODE}),
        prompt_logprobs=False,
        attention=kernel_for(AUTO_KERNEL, device, bundle.config.head_dim, args.page_size),
    )
    # Of all that serving would compile, what these steps take, and the largest step, which every engine must have.
    shapes = (ExtendShape(args.batch, 0, pages), ExtendShape(args.batch, args.page_size, pages))
    config = replace(config, buckets=Buckets(shapes, draws=(args.batch,)))
    engine = Engine(config, loaded, mesh)
    began = time.perf_counter()
    engine.compile()
    _tell(f"compiled in {time.perf_counter() - began:.1f} s")
    before = measure(device)
    times = time_steps(engine, args.batch, args.context, args.page_size, args.steps)
    # Machines change under a measurement: what counts is the best that any probe reached, before or after.
    probes = sorted([*before, *measure(device)], key=lambda probe: probe.rate, reverse=True)[: len(before)]
    kv_bytes = args.batch * args.context * bytes_per_token(kv_groups(bundle.config, dtype))
    floor = Floor(step_parameter_bytes(loaded), kv_bytes, probes[0].rate)
    best, median = min(times), statistics.median(times)
    for probe in probes:
        print(f"  {probe.rate / 1e9:8.1f} GB/s  {probe.name}")
    print(
        f"bytes a step     {floor.parameter_bytes / 1e6:.1f} MB weights + {floor.kv_bytes / 1e6:.1f} MB KV ({dtype}, weights {args.weights}, {device.device_kind})"
    )
    print(f"floor            {floor.seconds * 1e3:.3f} ms")
    print(
        f"measured         {median * 1e3:.3f} ms median, {best * 1e3:.3f} ms best of {len(times)} windows of {min(WINDOW, args.steps)} steps (batch {args.batch}, context {args.context})"
    )
    print(f"measured / floor {median / floor.seconds:.2f} median, {best / floor.seconds:.2f} best")
    if args.json is not None:
        figures = {
            "model": args.model, "dtype": dtype, "weights": args.weights, "device": device.device_kind, "batch": args.batch, "context": args.context,
            "floor": asdict(floor) | {"seconds": floor.seconds}, "median": median, "best": best, "probes": [asdict(p) for p in probes],
        }  # fmt: skip
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def time_steps(engine: Engine, batch: int, context: int, page_size: int, steps: int) -> list[float]:
    """Seconds a decode step over `context` tokens, as means over windows of WINDOW steps, each dispatched before the last one is read.

    Single intervals would flatter: when the host is held up, the step that is already dispatched ends meanwhile and seems to take no time.
    """
    window = min(WINDOW, steps)
    pending = engine.dispatch(decode_plan(0, batch, context, page_size))
    times, last = [], time.perf_counter()
    for number in range(1, window + steps + 1):
        following = engine.dispatch(decode_plan(number, batch, context, page_size))
        engine.collect(pending)
        pending = following
        if number % window == 0:
            now = time.perf_counter()
            times.append((now - last) / window)
            last = now
    engine.collect(pending)
    return times[1:]  # the first window warms up


def decode_plan(number: int, batch: int, context: int, page_size: int) -> StepPlan:
    """A greedy decode step of `batch` sequences, each with `context` tokens in its pages after the step. What the pages hold does not matter."""
    width = -(-context // page_size)
    rows = tuple(
        Row(
            sequence=slot,
            tokens=(1,) if number == 0 else (),
            start=context - 1,
            position=context - 1,
            pages=tuple(range(1 + slot * width, 1 + (slot + 1) * width)),
            token_slot=slot,
            draws=(Draw(slot, context),),
        )
        for slot in range(batch)
    )
    seats = tuple(Seat(slot, 0, SamplingParams(temperature=0.0)) for slot in range(batch)) if number == 0 else ()
    return StepPlan(number, rows, seats)


def step_parameter_bytes(loaded: LoadedDecoder) -> int:
    """Weights that one step reads: all of them, except that an untied input embedding is only looked up."""
    looked_up = "" if loaded.config.tie_embeddings else "embedding."
    named = zip(loaded.structure.paths, loaded.params, strict=True)
    return sum(array.nbytes for path, array in named if not (looked_up and path.startswith(looked_up)))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

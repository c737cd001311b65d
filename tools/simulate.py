"""`triptych simulate`: a whole cluster on a virtual clock; the real scheduler and the real instances, with step times
instead of devices.

Prints a line per rate and the goodput; --out writes everything as JSON, --plot draws it. What is modelled and what is
real: docs/simulation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from triptych.models.config import PRESETS, ModelConfig
from triptych.models.hub.media import read_multimodal
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.topology import parse as parse_topology
from triptych.runtime.instance.composer import COMPOSERS, DEFAULT_COMPOSER
from triptych.runtime.scheduler.policies.queue_order import QUEUE_ORDERS
from triptych.runtime.scheduler.policies.router import ROUTERS
from triptych.runtime.simulation import traces
from triptych.runtime.simulation.hardware import HARDWARE, HardwareError, find_hardware
from triptych.runtime.simulation.roofline import ModelShape, Roofline
from triptych.runtime.simulation.slo import Slo
from triptych.runtime.simulation.steptime_table import StepTableError, load_table
from triptych.runtime.simulation.study import RateResult, Study, StudyResult, run_study
from triptych.runtime.simulation.study_fleet import Delays
from triptych.runtime.simulation.study_layout import Device, Limits, layout, roofline_device, table_device
from triptych.runtime.simulation.workload import Lengths, WorkloadError
from triptych.runtime.simulation.workload_images import Images
from triptych.runtime.simulation.workload_named import PROCESSES, SYNTHETIC, Workload
from triptych.tools import simulate_fan_out, simulate_media
from triptych.tools.reports import check_outputs
from triptych.tools.settings import parse_bytes

_DTYPES = {"bfloat16": 2, "float32": 4}
TELL_EVERY = 2.0  # seconds between lines of progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--topology", default="1P1D", help="such as 2P2D or 4PD (default 1P1D)")
    cluster.add_argument("--hardware", metavar="NAME", help=f"{', '.join(HARDWARE)}, or a .json description")
    cluster.add_argument(
        "--prefill-hardware", metavar="NAME", help="what prefill instances run on, if it is something else"
    )
    cluster.add_argument("--table", type=Path, metavar="FILE", help="step times that `triptych calibrate` measured")
    cluster.add_argument(
        "--prefill-table", type=Path, metavar="FILE", help="those of prefill instances, if they differ"
    )
    cluster.add_argument(
        "--model", default="llama-8b", help=f"preset ({', '.join(PRESETS)}) or a folder with config.json"
    )
    cluster.add_argument(
        "--dtype", choices=tuple(_DTYPES), default="bfloat16", help="of weights and KV (default bfloat16)"
    )
    cluster.add_argument("--tp", type=int, default=1, help="chips an instance (default 1)")
    cluster.add_argument("--prefill-tp", type=int, help="chips a prefill instance, if different")
    cluster.add_argument(
        "--kv-bandwidth",
        type=_size,
        metavar="BYTES",
        help="a second, of each instance's link (default: the hardware's network)",
    )
    limits = Limits()
    cluster.add_argument("--page-size", type=int, default=limits.page_size)
    cluster.add_argument("--num-pages", type=int, help="KV pages an instance (default: what fits)")
    cluster.add_argument("--max-num-seqs", type=int, default=limits.max_num_seqs)
    cluster.add_argument("--max-model-len", type=int, default=limits.max_model_len)
    cluster.add_argument(
        "--max-num-batched-tokens", type=int, default=limits.chunk_tokens, help="prefill tokens a step"
    )
    cluster.add_argument("--max-prefill-rows", type=int, default=limits.max_prefill_rows, help="prompts a step")
    cluster.add_argument("--no-prefix-cache", action="store_true", help="never keep KV for later requests")
    cluster.add_argument("--router", choices=tuple(ROUTERS), default="least-loaded")
    cluster.add_argument(
        "--composer",
        choices=tuple(COMPOSERS),
        default=DEFAULT_COMPOSER,
        help="what enters a step, but where stages take turns (default: as they come)",
    )
    cluster.add_argument("--queue-order", choices=tuple(QUEUE_ORDERS), default="fcfs")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--trace", default="random", metavar="NAME",
        help=f"{', '.join(traces.BUNDLED)}, a .csv or .jsonl file, or {', '.join(SYNTHETIC)} (default random)",
    )  # fmt: skip
    load.add_argument(
        "--arrivals",
        choices=PROCESSES,
        default="native",
        help="when requests come (default: as in the trace; else Poisson)",
    )
    load.add_argument(
        "--rate", type=_rates, default=(1.0,), metavar="LIST", help="requests a second, such as 4,8,16 (default 1)"
    )
    load.add_argument("--requests", type=int, default=1000, help="per rate (default 1000)")
    load.add_argument("--input-len", type=float, default=512, help="mean prompt tokens of random load (default 512)")
    load.add_argument("--output-len", type=float, default=128, help="mean tokens generated (default 128)")
    load.add_argument(
        "--length-cv", type=float, default=1.0, help="coefficient of variation of both (default 1; 0: always the mean)"
    )
    load.add_argument(
        "--burstiness", type=float, default=3.0, metavar="CV", help="of gaps with --arrivals gamma (default 3)"
    )
    load.add_argument("--turns", type=float, default=4.0, help="mean turns of --trace sessions (default 4)")
    load.add_argument("--think", type=float, default=30.0, help="mean seconds between turns (default 30)")
    load.add_argument("--seed", type=int, default=0)
    simulate_media.add_arguments(parser)
    load.add_argument(
        "--encoders", type=_counts, metavar="LIST",
        help="add so many encode instances to the topology, one study each, such as 1,2,4: how images fan out",
    )  # fmt: skip
    slo = parser.add_argument_group("objectives")
    slo.add_argument("--slo-ttft", type=float, metavar="SECONDS", help="time to the first token")
    slo.add_argument("--slo-tpot", type=float, metavar="SECONDS", help="mean time per further token")
    slo.add_argument(
        "--warmup", type=float, default=0.1, help="share of the requests that are not judged (default 0.1)"
    )
    out = parser.add_argument_group("report")
    out.add_argument("--out", type=Path, metavar="FILE", help="everything as JSON")
    out.add_argument(
        "--plot", type=Path, metavar="FILE", help="attainment against rate, stages, occupancy (.png, .svg, .pdf)"
    )
    out.add_argument("--memory", action="store_true", help="only print what instances hold in memory, from shapes")
    out.add_argument(
        "--jobs",
        type=int,
        choices=(1, 2),
        default=1,
        help="processes that simulate; the result is the same (default 1)",
    )
    out.add_argument(
        "--every-step", action="store_true", help="simulate every decode step singly: the same result, ten times slower"
    )


def run(args: argparse.Namespace) -> int:
    if args.plot is not None:
        from triptych.tools import simulate_plot

        simulate_plot.check()
    check_outputs(args.out, args.plot)
    if args.encoders:
        fan_out = simulate_fan_out.run_fan_out(args, _checked_study)
        print(simulate_fan_out.table(fan_out))
        if args.out is not None:
            args.out.write_text(json.dumps({str(n): asdict(r) for n, r in fan_out.results.items()}, indent=1) + "\n")
        if args.plot is not None:
            simulate_fan_out.draw(args.plot, fan_out)
        return 0
    study, price = _checked_study(args)
    if args.memory:
        print(simulate_media.memory(study.kinds))
        return 0
    try:
        result = run_study(study, _Progress(study.requests))
    except WorkloadError as error:  # a load is read and checked as it is made
        raise ConfigError(str(error)) from error
    print(table(study, result, price))
    if args.out is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        args.out.write_text(json.dumps(as_dict(settings, study, result, price), indent=1) + "\n")
    if args.plot is not None:
        simulate_plot.draw(args.plot, study, result)
    return 0


def _checked_study(args: argparse.Namespace) -> tuple[Study, float | None]:
    """`make_study`, and whatever is wrong with the flags as ConfigError."""
    try:
        return make_study(args)
    except (WorkloadError, HardwareError, StepTableError, ValueError) as error:
        raise ConfigError(str(error)) from error


def make_study(args: argparse.Namespace) -> tuple[Study, float | None]:
    """The study that the flags describe, and what its cluster costs in dollars an hour, if that is known."""
    limits = Limits(
        args.page_size, args.max_num_seqs, args.max_model_len, args.max_num_batched_tokens, args.max_prefill_rows,
        args.num_pages, not args.no_prefix_cache,
    )  # fmt: skip
    if wrong := [
        name for name, value in vars(limits).items() if value is not None and value < 1 and name != "prefix_cache"
    ]:
        raise ConfigError(f"{', '.join(wrong)} must be positive")
    topology = parse_topology(args.topology)
    decode, prefill, encode, images = _devices(args, limits)
    cv = args.length_cv
    workload = Workload(
        args.trace, args.arrivals, Lengths(args.input_len, cv), Lengths(args.output_len, cv), turns=args.turns,
        think=args.think, cv=args.burstiness, images=images, most=decode.limits.max_model_len, seed=args.seed,
    )  # fmt: skip
    kinds = layout(topology, prefill, decode, encode, args.composer)
    prices = [{"prefill": prefill, "encode": encode}.get(kind.name, decode).price for kind in kinds]
    price = None if None in prices else sum(p * k.count for p, k in zip(prices, kinds, strict=True) if p is not None)
    study = Study(
        kinds, workload, tuple(args.rate), args.requests, Slo(args.slo_ttft, args.slo_tpot), args.router, args.queue_order,
        Delays(), args.warmup, args.seed, not args.every_step, jobs=args.jobs,
    )  # fmt: skip
    return study, price


def _devices(args: argparse.Namespace, limits: Limits) -> tuple[Device, Device, Device, Images | None]:
    """What decode, prefill and encode instances run on, and the images of the load."""
    _check_one(args.hardware, args.table)
    vision = simulate_media.find_vision(args, None if args.hardware is None else model_config(args.model))
    encode_table = args.encode_table or (None if args.encode_hardware else args.table)
    images = simulate_media.make_images(args, vision, simulate_media.encode_table(encode_table))

    def device(hardware: str | None, measured: Path | None, tp: int) -> Device:
        made = _device(args, hardware, measured, tp, limits)
        table, value_bytes = simulate_media.encode_table(measured), _DTYPES[args.dtype]
        media = simulate_media.media_device(args, hardware, table, tp, made.limits, vision, images, value_bytes)
        return replace(made, media=media)

    decode = prefill = device(args.hardware, args.table, args.tp)
    if args.prefill_hardware or args.prefill_table or args.prefill_tp:
        hardware, measured = args.prefill_hardware or args.hardware, args.prefill_table or args.table
        prefill = device(hardware, measured, args.prefill_tp or args.tp)
    encode = prefill
    if args.encode_hardware or args.encode_table or args.encode_tp:
        hardware, measured = args.encode_hardware or args.hardware, args.encode_table or args.table
        encode = device(hardware, measured, args.encode_tp or args.tp)
    for other in (decode, encode):
        if prefill.limits.page_size != other.limits.page_size or prefill.token_bytes != other.token_bytes:
            raise ConfigError(
                "instances differ in page size or KV bytes a token: they cannot exchange KV or embeddings"
            )
    return decode, prefill, encode, images


def _device(args: argparse.Namespace, hardware: str | None, measured: Path | None, tp: int, limits: Limits) -> Device:
    _check_one(hardware, measured)
    if measured is not None:
        return table_device(load_table(measured), limits, args.kv_bandwidth)
    assert hardware is not None
    model = ModelShape.of(model_config(args.model), _DTYPES[args.dtype])
    return roofline_device(Roofline(find_hardware(hardware), model, tp), limits, args.kv_bandwidth)


def _check_one(hardware: str | None, measured: Path | None) -> None:
    if (hardware is None) == (measured is None):
        raise ConfigError("give --hardware NAME or --table FILE (one of them), also for prefill and encode")


def model_config(name: str) -> ModelConfig:
    """A preset, or the config.json in a folder. No weights are touched."""
    preset = name.removeprefix("dummy:")
    if preset in PRESETS:
        return PRESETS[preset]
    if preset in VLM_PRESETS:
        return VLM_PRESETS[preset].text
    path = Path(name) / "config.json"
    if not path.is_file():
        raise ConfigError(f"no model {name!r}; presets are {', '.join(PRESETS)}; or name a folder with config.json")
    if (both := read_multimodal(Path(name))) is not None:
        return replace(both.text, name=name)
    return replace(ModelConfig.from_hf(json.loads(path.read_text())), name=name)


def table(study: Study, result: StudyResult, price: float | None) -> str:
    """A line per rate."""
    instances = ", ".join(f"{kind.count} {kind.name}" for kind in study.kinds)
    cost = "" if price is None else f", {price:.2f} $/h"
    head = f"{'req/s':>8}{'TTFT p50':>10}{'p90':>9}{'p99':>9}{'TPOT p50':>10}{'p90':>8}{'p99':>8}{'in TTFT':>9}{'in TPOT':>9}{'in both':>9}"
    for kind in study.kinds:
        head += f"{kind.name + ' busy':>14}"
    lines = [f"{instances}{cost}; router {study.router}; {study.requests} requests a rate; milliseconds", head]
    lines += [_row(study, r) for r in result.results]
    if study.workload.images is not None:
        lines += ["", *simulate_media.table(result.results)]
    if study.slo.ttft is not None or study.slo.tpot is not None:
        best = result.goodput
        wanted = " and ".join(f"{n.upper()} <= {v:g} s" for n, v in asdict(study.slo).items() if v is not None)
        text = "less than the smallest rate tried" if best is None else f"{best:g} req/s"
        if best is not None and best == result.results[-1].rate:
            text += " or more (the largest rate tried)"
        lines.append(f"goodput {text}: at least 90 % of requests with {wanted}")
    return "\n".join(lines)


def _row(study: Study, r: RateResult) -> str:
    line = f"{r.rate:>8g}"
    for name, widths in (("ttft", (10, 9, 9)), ("tpot", (10, 8, 8))):
        values = r.latencies.get(name)
        cells = ("-",) * 3 if values is None else tuple(f"{v * 1e3:.1f}" for v in (values.p50, values.p90, values.p99))
        line += "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    line += "".join(f"{share:>9.1%}" for share in (r.attainment.ttft, r.attainment.tpot, r.attainment.both))
    line += "".join(f"{r.occupancy[kind.name]['busy']:>14.0%}" for kind in study.kinds)
    if r.failures:
        line += "  failed: " + ", ".join(f"{count} {status}" for status, count in sorted(r.failures.items()))
    return line


def as_dict(settings: dict[str, Any], study: Study, result: StudyResult, price: float | None) -> dict[str, Any]:
    """What --out writes."""
    kinds = [{k: v for k, v in vars(kind).items() if k not in ("times", "roles", "composer")} for kind in study.kinds]
    facts = {
        "settings": settings,
        "kinds": kinds,
        "price": price,
        "delays": asdict(study.delays),
        "slo": asdict(study.slo),
    }
    return facts | result.as_dict()


class _Progress:
    """A line on stderr every other second."""

    def __init__(self, requests: int):
        self._requests, self._last = requests, time.monotonic()

    def __call__(self, rate: float, now: float, submitted: int, ended: int) -> None:
        if time.monotonic() - self._last >= TELL_EVERY:
            self._last = time.monotonic()
            text = f"rate {rate:g}: {now:.0f} s of virtual time, {ended} of {self._requests} requests ended, {submitted - ended} open"
            print(text, file=sys.stderr, flush=True)


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rates such as 4,8,16") from None


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = (0,)
    if counts[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of counts such as 1,2,4")
    return counts


def _size(text: str) -> float:
    try:
        return float(parse_bytes(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

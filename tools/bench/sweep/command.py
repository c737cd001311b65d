"""`triptych bench-sweep`: goodput of topologies with equally many devices, each served on this host under the same open-loop load.

For each topology a deployment is started, asked at rate after rate until goodput is known within 10 %, and ended. One
budget of seconds holds for everything; what was not measured is said. --json is written again after every point.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.simulation.slo import Slo
from triptych.tools import launch
from triptych.tools.bench.sweep import live, plot, prompts, report
from triptych.tools.bench.sweep.budget import Budget, of_seconds
from triptych.tools.bench.sweep.candidates import Candidate, parse_candidates
from triptych.tools.bench.sweep.loads import KINDS, parse_loads
from triptych.tools.bench.sweep.sweep import Plan, Starter, run_sweep
from triptych.tools.config import ServeConfig
from triptych.tools.reports import check_outputs
from triptych.tools.settings import add_arguments as add_settings

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_name", nargs="?", metavar="MODEL", help="same as --model")
    sweep = parser.add_argument_group("sweep")
    sweep.add_argument(
        "--topologies", default="2PD,1P1D", metavar="LIST",
        help="such as 2PD,1P1D,PD:tp2,1P1D:one (default 2PD,1P1D); options follow colons: tpN, ptpN, dtpN, etpN, one, per-instance, SETTING=VALUE",
    )  # fmt: skip
    sweep.add_argument(
        "--loads", default="conversation", metavar="LIST",
        help=f"{', '.join(KINDS)}, with options such as poisson:input=300:output=100 or images:images=2-4:ttft=2 (default conversation)",
    )  # fmt: skip
    sweep.add_argument("--rates", type=_rates, default=(), metavar="LIST", help="requests a second (default: searched)")
    sweep.add_argument("--base-rate", type=float, default=1.0, help="where the search begins (default 1)")
    sweep.add_argument("--slo-ttft", type=float, default=1.0, metavar="SECONDS", help="(default 1)")
    sweep.add_argument("--slo-tpot", type=float, default=0.05, metavar="SECONDS", help="(default 0.05)")
    sweep.add_argument("--seconds", type=float, default=1500.0, help="for everything (default 1500)")
    sweep.add_argument("--point-seconds", type=float, default=20.0, help="judged at each rate (default 20)")
    sweep.add_argument("--warmup", type=float, default=5.0, help="seconds of a point that are not (default 5)")
    sweep.add_argument("--least-requests", type=int, default=20, help="judged at each rate (default 20)")
    sweep.add_argument(
        "--max-lag", type=float, metavar="SECONDS",
        help="lateness of the load generator that makes a point invalid (default: a twentieth of --slo-ttft)",
    )  # fmt: skip
    sweep.add_argument(
        "--load-seed", type=int, default=0, help="of arrivals, lengths, prompts and pictures (default 0)"
    )
    sweep.add_argument("--json", type=Path, metavar="FILE", help="everything, written again after every point")
    sweep.add_argument(
        "--append", action="store_true",
        help="keep the topologies that --json FILE has from an earlier call with the same loads, and compare with them",
    )  # fmt: skip
    sweep.add_argument("--plot", type=Path, metavar="PNG", help="draw it (needs matplotlib)")
    sweep.add_argument("--logs", action="store_true", help="show what the deployments' processes say")
    add_settings(parser, ServeConfig)


def run(args: argparse.Namespace, start: Starter | None = None) -> int:
    began = time.monotonic()
    if args.model_name is not None:
        if getattr(args, "model", args.model_name) != args.model_name:
            raise ConfigError(f"two models are named, {args.model_name} and --model {args.model}; give one of them")
        args.model = args.model_name
    positive = (args.base_rate, args.seconds, args.point_seconds, args.least_requests)
    if min(positive) <= 0 or args.warmup < 0 or (args.max_lag is not None and args.max_lag <= 0):
        raise ConfigError(
            "--base-rate, --seconds, --point-seconds, --least-requests and --max-lag must be positive, --warmup not negative"
        )
    try:
        slo = Slo(args.slo_ttft, args.slo_tpot)
        loads = parse_loads(args.loads, slo)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if args.append and args.json is None:
        raise ConfigError("--append needs --json FILE: what to add to")
    candidates = parse_candidates(args.topologies, args)
    check_outputs(args.json, args.plot)
    if args.plot is not None:
        plot.check()
    if any(load.seen for load in loads):
        prompts.check_pictures()
    plan = Plan(
        args.rates,
        args.base_rate,
        args.warmup,
        args.point_seconds,
        args.least_requests,
        args.max_lag,
        seed=args.load_seed,
    )
    config = candidates[0].config
    found: report.Report = {
        "kind": "bench-sweep",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "model": config.model,
        "devices": candidates[0].devices,
        "device": launch.detect_device() if config.device == "auto" else config.device,
        "loads": [{"name": load.name, "ttft": load.slo.ttft, "tpot": load.slo.tpot} for load in loads],
        "plan": asdict(plan),
        "topologies": [],
        "interrupted": False,
        "seconds": 0.0,
    }

    names = [one.name for one in candidates]
    if args.append and args.json.is_file():
        found["topologies"] = report.kept(args.json, found, names)
    told = sum(len(load["points"]) for row in found["topologies"] for load in row["loads"].values())

    def changed() -> None:
        nonlocal told
        found["seconds"] = time.monotonic() - began
        if args.json is not None:
            report.write_json(args.json, found)
        points = [
            (row["name"], load, point)
            for row in found["topologies"]
            for load, of in row["loads"].items()
            for point in of["points"]
        ]
        for name, load, point in points[told:]:
            print(_line(found, name, load, point), file=sys.stderr, flush=True)
        told = len(points)

    before = {
        # A shell that puts a command into the background lets it ignore SIGINT.
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _as_interrupt),
    }
    budget = of_seconds(args.seconds, time.monotonic)
    try:
        run_sweep(candidates, loads, plan, start or _starter(args, plan), budget, found, changed)
    except KeyboardInterrupt:
        found["interrupted"] = True
        begun = {row["name"] for row in found["topologies"]}
        found["not_started"] = [name for name in names if name not in begun]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    changed()
    print(report.tables(found))
    if args.plot is not None:
        plot.draw(args.plot, found)
    if found["interrupted"]:
        return INTERRUPTED
    return 1 if any(row["failed"] for row in found["topologies"]) else 0


def _starter(args: argparse.Namespace, plan: Plan) -> Starter:
    def log(line: str) -> None:
        if args.logs:
            print(line, file=sys.stderr, flush=True)

    def start(candidate: Candidate, budget: Budget):
        print(f"triptych bench-sweep: starting {candidate.name}", file=sys.stderr, flush=True)
        return live.running(candidate, budget, plan, log)

    return start


def _line(found: report.Report, name: str, load: str, point: report.Report) -> str:
    text = (
        f"triptych bench-sweep: {found['seconds']:.0f} s: {name}, {load}, {point['rate']:.4g} req/s: "
        f"{point['attainment']:.1%} inside both"
    )
    return text if point["valid"] else f"{text}, NOT VALID: {point['why']}"


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    """SIGTERM as Ctrl-C: deployments are ended, what was measured is written."""
    signal.raise_signal(signal.SIGINT)


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(sorted({float(part) for part in text.split(",")}))
    if not all(0 < rate < float("inf") for rate in rates):
        raise argparse.ArgumentTypeError(f"{text}: expected positive requests a second, such as 1,2,4")
    return rates

"""`triptych fidelity`: does the simulator predict this machine? A live deployment under load beside the simulation of
the same requests.

1. The engine is measured (`triptych calibrate`), pinned to one core as a worker is; for prefill and decode on cores of
their own a second time, each beside the other at work, because cores share their machine's memory. 2. The deployment starts, each
worker on a core of its own, and a few requests on the idle deployment give the delays that no step table has
(fidelity_fit.py). 3. Several rounds of open-loop load, at a share of the predicted capacity, are measured and
simulated, the same arrivals both times. The verdict compares medians over rounds of p50 and p90 of TTFT and TPOT.

Needs a quiet machine and Linux (core pinning). What it says about a busy one is nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from triptych.runtime.core.errors import ConfigError, EngineError
from triptych.runtime.core.topology import parse
from triptych.runtime.simulation.steptime_table import StepTable, StepTableError, load_table
from triptych.runtime.simulation.workload import Lengths
from triptych.runtime.simulation.workload_named import Workload
from triptych.tools import fidelity_live as live
from triptych.tools.bench.metrics import Record
from triptych.tools.config import ServeConfig
from triptych.tools.fidelity_fit import Model, capacity, contended, fit, predict
from triptych.tools.reports import check_outputs

STAND_IN = "dummy:toy"  # what computes, in next to no time, where step times are a table's
BOUND = 0.15  # of the measured value
QUIET = 0.05  # what a quiet machine's steps may change by, from before the rounds to after them
TOGETHER = 4  # requests of a probe that decode at once
PROBE_OUTPUT = 32
LONG = 60.0  # seconds for each end of each program: a neighbour's calibration outlasts any other


@dataclass(frozen=True)
class Line:
    """One quantile of one latency, milliseconds: medians over rounds."""

    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1.0


Round = dict[str, tuple[float, float]]
"""(measured, predicted) seconds of each quantile."""


@dataclass(frozen=True)
class Trial:
    """One topology's rounds, and what was predicted from what."""

    rate: float
    bare: Model
    """As fitted to the idle deployment."""
    beside: tuple[StepTable, StepTable] | None
    """Steps of prefill and of decode, each beside the other role at work."""
    model: Model
    """`bare`, with its steps as slow as `beside` says."""
    rounds: tuple[Round, ...]
    drift: float
    """How much further apart tokens of a lone request were after the rounds than before."""

    @property
    def quiet(self) -> bool:
        return abs(self.drift) <= QUIET

    def as_json(self) -> dict[str, object]:
        """Seconds, and of each program the medians at both of its ends."""
        model = self.model
        tables = {"alone": (self.bare.prefill, self.bare.decode), "predicted": (model.prefill, model.decode)}
        if self.beside is not None:
            tables["beside"] = self.beside
        return {
            "rate": self.rate, "drift": self.drift, "quiet": self.quiet, "rounds": self.rounds,
            "delays": asdict(model.delays), "pull": asdict(model.pull),
            "decode_host": asdict(model.decode.host), "prefill_host": asdict(model.prefill.host),
            "steps": {how: {"prefill": _steps(prefill), "decode": _steps(decode)} for how, (prefill, decode) in tables.items()},
        }  # fmt: skip


def _steps(table: StepTable) -> list[dict[str, float]]:
    return [
        {"decode_rows": p.decode_rows, "prefill_tokens": p.prefill_tokens, "low": p.low.median, "high": p.high.median}
        for p in table.programs
    ]


def _errors(measured: Round) -> str:
    return ", ".join(f"{name} {predicted / live - 1.0:+.0%}" for name, (live, predicted) in measured.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="dummy:toy", help="as for serve (default dummy:toy)")
    parser.add_argument(
        "--table", type=Path, metavar="FILE",
        help="step times that `triptych calibrate` measured: workers wait so long instead of computing, and their limits are the table's; for topologies wider than this machine",
    )  # fmt: skip
    parser.add_argument("--topology", nargs="+", default=["PD", "1P1D"], help="deployments to try (default PD 1P1D)")
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--max-num-batched-tokens", type=int, default=128)
    parser.add_argument("--num-pages", type=int, help="default: what the longest sequences need")
    parser.add_argument("--device", default="auto", help="as for serve (default auto)")
    parser.add_argument("--transport", choices=("device", "grpc"), default="grpc", help="how KV moves (default grpc)")
    parser.add_argument("--input-len", type=float, default=150, help="mean prompt tokens (default 150)")
    parser.add_argument("--output-len", type=float, default=40, help="mean tokens generated (default 40)")
    parser.add_argument("--length-cv", type=float, default=0.6)
    parser.add_argument(
        "--load", type=float, default=0.7, help="share of the predicted capacity, at most 0.8 (default 0.7)"
    )
    parser.add_argument("--requests", type=int, default=200, help="a round (default 200)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--probes", type=int, default=8, help="of each kind, on the idle deployment (default 8)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of calibration for each program's ends (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", default=ServeConfig().cache_dir)
    parser.add_argument("--json", type=Path, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.load <= 0.8:
        raise ConfigError(
            f"--load is {args.load}; expected more than 0 and at most 0.8: beyond, queues have no steady state"
        )
    if min(args.requests, args.rounds, args.probes) < 1 or args.max_model_len < 64:
        raise ConfigError("--requests, --rounds and --probes must be positive, --max-model-len at least 64")
    assign = live.assign_cores if args.table is None else live.all_cores
    cores = {topology: assign(len(parse(topology).instances())) for topology in args.topology}
    check_outputs(args.json)
    verdicts, report = [], {}
    for topology, own in cores.items():
        if own.shared and args.table is None:
            _tell(
                f"{topology}: no core is left for scheduler, gateway and clients; they share the workers', and latencies will show it"
            )
        trial = _try(args, topology, own)
        lines = medians(trial.rounds)
        print(table(topology, trial.rate, lines))
        print(
            f"tokens of a lone request came {trial.drift:+.1%} apart afterwards{'' if trial.quiet else ': this machine is not quiet'}"
        )
        verdicts += [abs(line.error) <= BOUND for line in lines]
        report[topology] = trial.as_json() | {"lines": [asdict(line) | {"error": line.error} for line in lines]}
    inside = sum(verdicts)
    print(f"{inside} of {len(verdicts)} within {BOUND:.0%}")
    if args.json is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        args.json.write_text(json.dumps({"settings": settings, "bound": BOUND, "topologies": report}, indent=1) + "\n")
    return 0 if inside == len(verdicts) else 1


def _try(args: argparse.Namespace, topology: str, cores: live.Cores) -> Trial:
    prefill, decode = step_tables(args, topology, cores)
    beside = tables_beside(args, topology, cores)
    _tell(f"{topology}: starting the deployment")
    with live.deployment(serve_config(args, topology, decode), cores) as address, live.pinned(cores.rest):
        most = decode.limits.max_model_len
        longest = most - PROBE_OUTPUT
        lengths = [max(1, longest // 8), longest // 2, longest]
        several = min(TOGETHER, decode.limits.max_num_seqs)
        alone = asyncio.run(live.probes(address, lengths, PROBE_OUTPUT, 1, args.probes))
        groups = asyncio.run(live.probes(address, lengths[:2], PROBE_OUTPUT, several, args.probes))
        model = fit(topology, prefill, decode, alone, groups)
        rate = args.load * capacity(model, [(p, o) for _, p, o in load(args, most, 1.0, args.seed)])
        bare = model
        if beside is not None:
            model = contended(model, beside, load(args, most, rate, args.seed))
        _tell(f"{topology}: {rate:.3g} requests a second")
        rounds = []
        for number in range(args.rounds):
            sent = load(args, most, rate, args.seed + number)
            records = asyncio.run(live.replay(address, sent, args.seed + number))
            rounds.append(compare(records, model, sent))
            _tell(f"{topology}: round {number + 1} of {args.rounds}: {_errors(rounds[-1])}")
        again = asyncio.run(live.probes(address, lengths, PROBE_OUTPUT, 1, args.probes))
    return Trial(rate, bare, beside, model, tuple(rounds), token_gap(again) / token_gap(alone) - 1.0)


def token_gap(groups: Sequence[Sequence[live.Probe]]) -> float:
    """Median seconds between tokens of requests that were alone."""
    return statistics.median(gap for (one,) in groups for gap in one.gaps)


def step_tables(args: argparse.Namespace, topology: str, cores: live.Cores) -> tuple[StepTable, StepTable]:
    """Of prefill and of decode steps."""
    if args.table is not None:
        try:
            table = load_table(args.table)
        except StepTableError as error:
            raise ConfigError(str(error)) from error
        return table, table
    roles = ("prefill", "decode") if parse(topology).disaggregated else ("both",)
    tables = [calibrated(args, role, cores.workers[-1][0]) for role in roles]
    return tables[0], tables[-1]


def tables_beside(args: argparse.Namespace, topology: str, cores: live.Cores) -> tuple[StepTable, StepTable] | None:
    """The same, of each role beside the other one at work on another core; None where no two of them compute at once."""
    if args.table is not None or not parse(topology).disaggregated:
        return None
    (first, *_), *_, (last, *_) = cores.workers
    tables = []
    for role, other in (("prefill", "decode"), ("decode", "prefill")):
        with busy_neighbour(args, other, first):
            tables.append(calibrated(args, role, last, f" beside {other}"))
    return tables[0], tables[1]


@contextlib.contextmanager
def busy_neighbour(args: argparse.Namespace, role: str, core: int) -> Iterator[None]:
    """An engine of `role` that computes on `core`, one step after another, from the beginning to the end of the context."""
    with tempfile.TemporaryDirectory(prefix="triptych-fidelity-") as folder:
        command = calibrate_command(args, role, Path(folder) / "table.json", LONG)
        with live.pinned((core,)):
            neighbour = subprocess.Popen(
                command, env=calibrate_environment(args), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        try:
            assert neighbour.stderr is not None
            if not any(line.startswith("compiled ") for line in neighbour.stderr):
                raise EngineError(f"calibrating {args.model} as {role}: it ended with status {neighbour.wait()}")
            yield
            if neighbour.poll() is not None:
                raise EngineError(f"{args.model} as {role} stopped computing while its neighbour was measured")
        finally:
            neighbour.kill()
            neighbour.communicate()


def calibrate_command(args: argparse.Namespace, role: str, out: Path, seconds: float) -> list[str]:
    command = [
        sys.executable, "-m", "triptych.tools.cli", "calibrate", args.model, "--out", str(out), "--roles", role,
        "--max-num-seqs", str(args.max_num_seqs), "--max-model-len", str(args.max_model_len),
        "--max-num-batched-tokens", str(args.max_num_batched_tokens), "--seconds", str(seconds),
        "--cache-dir", args.cache_dir,
    ]  # fmt: skip
    return command if args.num_pages is None else [*command, "--num-pages", str(args.num_pages)]


def calibrate_environment(args: argparse.Namespace) -> dict[str, str]:
    compiled = Path(args.cache_dir).expanduser() / "compiled"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    platform = {} if args.device == "auto" else {"JAX_PLATFORMS": args.device}
    return {**os.environ, **cache, **platform}


def calibrated(args: argparse.Namespace, role: str, core: int, how: str = "") -> StepTable:
    """The table of an engine like a worker's, measured by `triptych calibrate` on one core."""
    _tell(f"calibrating {args.model} as {role}{how}")
    with tempfile.TemporaryDirectory(prefix="triptych-fidelity-") as folder:
        out = Path(folder) / "table.json"
        with live.pinned((core,)):
            done = subprocess.run(
                calibrate_command(args, role, out, args.seconds),
                env=calibrate_environment(args), capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise (ConfigError if done.returncode == 2 else EngineError)(f"calibrating {args.model}: {last}")
        try:
            return load_table(out)
        except StepTableError as error:
            raise EngineError(str(error)) from error


def serve_config(args: argparse.Namespace, topology: str, table: StepTable) -> ServeConfig:
    """A deployment with the engine that was measured, or one that stands in for it."""
    limits = table.limits
    return ServeConfig(
        model=args.model if args.table is None else STAND_IN,
        step_times=None if args.table is None else str(args.table.resolve()),
        topology=topology,
        device=args.device,
        transport="auto" if not parse(topology).disaggregated else args.transport,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.chunk_tokens,
        page_size=limits.page_size,
        num_pages=limits.num_pages,
        cache_dir=args.cache_dir,
        port=0,
    )


def load(args: argparse.Namespace, most: int, rate: float, seed: int) -> list[tuple[float, int, int]]:
    """(arrival, prompt tokens, output tokens) of one round; prompt and output together are at most `most` tokens."""
    prompt, output = (Lengths(mean, args.length_cv, most) for mean in (args.input_len, args.output_len))
    arrivals = Workload("random", "poisson", prompt, output, most=most, seed=seed).arrivals(rate)
    return [(a.at, a.shape.prompt_tokens, a.shape.output_tokens) for a in islice(arrivals, args.requests)]


def compare(records: Sequence[Record], model: Model, sent: Sequence[tuple[float, int, int]]) -> Round:
    """One round's quantiles. Raises EngineError if a request failed."""
    if failed := [r for r in records if not r.ok]:
        raise EngineError(f"{len(failed)} of {len(records)} requests failed: {failed[0].status}: {failed[0].reason}")
    predicted = predict(model, sent)
    measured = {
        "ttft": np.array([r.ttft for r in records], dtype=np.float64),
        "tpot": np.array([r.tpot for r in records if r.tpot is not None], dtype=np.float64),
    }
    theirs = {"ttft": predicted.ttft, "tpot": predicted.tpot[~np.isnan(predicted.tpot)]}
    return {
        f"{name} p{q}": (float(np.percentile(measured[name], q)), float(np.percentile(theirs[name], q)))
        for name in measured
        for q in (50, 90)
    }


def medians(rounds: Sequence[Round]) -> list[Line]:
    """Over rounds, in milliseconds."""
    return [
        Line(name, *(statistics.median(one[name][side] for one in rounds) * 1e3 for side in (0, 1)))
        for name in rounds[0]
    ]


def table(topology: str, rate: float, lines: Sequence[Line]) -> str:
    """A line a quantile."""
    out = [f"{topology} at {rate:.3g} requests a second", f"{'ms':<10}{'measured':>10}{'predicted':>11}{'error':>9}"]
    out += [
        f"{line.name:<10}{line.measured:>10.2f}{line.predicted:>11.2f}{line.error:>+9.1%}"
        + ("" if abs(line.error) <= BOUND else "  beyond the bound")
        for line in lines
    ]
    return "\n".join(out)


def _tell(text: str) -> None:
    print(f"triptych fidelity: {text}", file=sys.stderr, flush=True)

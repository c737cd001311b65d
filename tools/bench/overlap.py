"""`triptych bench-overlap`: how much of the KV transfer hides behind prefill, by the number of layers that go into one offer.

A prefill and a decode instance of this process, on emulated CPU devices or on two accelerators, and a link on which every offer costs a hand-shake.
Offers of one layer are too many hand-shakes, offers of all layers come when the prompt is done; in between lies the size that
`smallest_hidden_group` chooses from the measured times (`transfer/layer_groups.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.transfer.layer_groups import KvTimes, cut_layers, fit_link, smallest_hidden_group
from triptych.tools.bench.intervals import overlap
from triptych.tools.config import ServeConfig
from triptych.tools.reports import check_outputs

if TYPE_CHECKING:
    from triptych.tools.bench.overlap_run import Workload

DEFAULT_CACHE = ServeConfig().cache_dir
PAGE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default="dummy:smollm2-135m",
        help="what to run (default dummy:smollm2-135m, random weights of its shape)",
    )
    parser.add_argument("--groups", default="1,2,3,4,5,10,all", help="layers an offer (default 1,2,3,4,5,10,all)")
    link = parser.add_mutually_exclusive_group()
    link.add_argument("--handshake-ms", type=float, help="what each offer costs before its bytes move")
    link.add_argument(
        "--handshake-layers",
        type=float,
        default=2.5,
        help="the same in layers' compute time, measured first (default 2.5: more than a layer hides)",
    )
    parser.add_argument("--requests", type=int, default=4, help="prompts, one behind the other (default 4)")
    parser.add_argument("--chunks", type=int, default=4, help="steps a prompt (default 4)")
    parser.add_argument("--chunk-tokens", type=int, default=128, help=f"tokens a step, a multiple of {PAGE}")
    parser.add_argument("--transport", choices=tuple(TransportKind), default=TransportKind.LOCAL)
    parser.add_argument("--cache-dir", default=DEFAULT_CACHE, help=f"models and programs (default {DEFAULT_CACHE})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw exposed and hidden time (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    if args.chunk_tokens < PAGE or args.chunk_tokens % PAGE or args.requests < 1 or args.chunks < 1:
        raise ConfigError(f"--requests and --chunks must be positive, --chunk-tokens a multiple of {PAGE}")
    if min(args.handshake_ms or 0.0, args.handshake_layers) < 0:
        raise ConfigError("a hand-shake takes no less than no time")
    sizes = parse_groups(args.groups)
    check_outputs(args.json, args.plot)
    # Late: it imports jax, and a wrong flag is reported without waiting for it.
    from triptych.tools.bench import overlap_run

    work = overlap_run.Workload(
        args.model,
        Path(args.cache_dir).expanduser(),
        TransportKind(args.transport),
        args.requests,
        args.chunks,
        args.chunk_tokens,
    )
    report = measure(work, sizes, args.handshake_ms, args.handshake_layers)
    print(describe(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        draw(report, args.plot)
    return 0 if report["same_tokens"] else 1


def parse_groups(text: str) -> list[int | None]:
    """Layers a group, None for all. Raises ConfigError for what is neither."""
    sizes: list[int | None] = []
    for part in text.split(","):
        if part.strip() != "all" and not (part.strip().isdigit() and int(part) > 0):
            raise ConfigError(f"--groups {text}: {part.strip()!r} is neither a number of layers nor 'all'")
        sizes.append(None if part.strip() == "all" else int(part))
    return sizes


def measure(
    work: Workload, sizes: list[int | None], handshake_ms: float | None, handshake_layers: float
) -> dict[str, Any]:
    """The report, with a run for each size. Offers of all layers and of one give the layer's time and the link's own hand-shake, which the
    injected one comes on top of."""
    from triptych.models.hub.bundle import open_model
    from triptych.models.hub.resolve import resolve_model
    from triptych.tools.bench import overlap_run

    layers = open_model(resolve_model(work.model, work.cache)).config.num_layers
    rows: dict[int, dict[str, Any]] = {}
    measured: dict[int, tuple[float, tuple[float, float]]] = {}
    tokens: list[list[list[int]]] = []

    def run(runner: overlap_run.Runner, size: int) -> None:
        """A run of its own gives each size its layer time: a machine that does other work besides is not always as fast."""
        runner.run(0.0, "measure")
        layer_seconds = runner.step_seconds() / layers
        measured[size] = (layer_seconds, runner.offer())
        injected = handshake_layers * layer_seconds if handshake_ms is None else handshake_ms * 1e-3
        found = overlap(runner.run(injected, "run"))
        tokens.append(runner.tokens)
        rows[size] = asdict(found) | {
            "layers_per_offer": size,
            "groups": len(cut_layers(layers, size)),
            "injected_seconds": injected,
            "step_seconds": runner.step_seconds(),
            "overlap_of_requests": found.of_requests,
            "overlap_in_run": found.in_run,
        }
        _tell(f"offers of {size} layers: {found.in_run:.1%} hidden in the run")

    def run_size(size: int) -> None:
        if size not in rows:
            with overlap_run.running(work, size) as runner:
                run(runner, size)

    for size in (layers, 1):
        run_size(size)
    (layer_seconds, large), (_, small) = measured[layers], measured[1]
    own, rate = fit_link(small, large)
    times = KvTimes(layer_seconds, own + rows[layers]["injected_seconds"], large[0] / layers, rate)
    chosen = smallest_hidden_group(times, layers)
    _tell(
        f"a layer takes {layer_seconds * 1e3:.2f} ms, a hand-shake {times.handshake_seconds * 1e3:.2f} ms: {chosen} layers"
    )
    for size in [*(min(size, layers) for size in sizes if size is not None), chosen]:
        run_size(size)
    return {
        "model": work.model,
        "layers": layers,
        "transport": str(work.transport),
        "requests": work.requests,
        "prompt_tokens": work.prompt_tokens,
        "chunk_tokens": work.chunk_tokens,
        "injected_seconds": rows[layers]["injected_seconds"],
        "times": asdict(times),
        "chosen": chosen,
        "same_tokens": all(one == tokens[0] for one in tokens),
        "rows": [rows[size] | {"chosen": size == chosen} for size in sorted(rows)],
    }


def describe(report: dict[str, Any]) -> str:
    """The table."""
    times = report["times"]
    what = (
        f"{report['model']}, {report['layers']} layers, {report['requests']} prompts of {report['prompt_tokens']} tokens in steps of "
        f"{report['chunk_tokens']}, transport {report['transport']}"
    )
    link = (
        f"layer {times['layer_seconds'] * 1e3:.2f} ms, hand-shake {times['handshake_seconds'] * 1e3:.2f} ms an offer "
        f"({report['injected_seconds'] * 1e3:.2f} ms of it injected), KV of a layer {times['layer_bytes'] / 1e3:.0f} kB a step"
    )
    lines = [
        what,
        link,
        "",
        f"{'':>45}{'after own prefill':>28}{'no prefill computes':>21}",
        f"{'layers':>8}{'offers':>8}{'injected':>10}{'step':>9}{'KV time':>10}{'exposed':>10}{'overlap':>9}{'late':>9}{'exposed':>12}{'overlap':>9}",
    ]
    for row in report["rows"]:
        lines.append(
            f"{row['layers_per_offer']:>8}{row['offers']:>8}{row['injected_seconds'] * 1e3:>8.1f}ms{row['step_seconds'] * 1e3:>7.0f}ms{row['transfer']:>9.3f}s"
            f"{row['exposed_of_requests']:>9.3f}s{row['overlap_of_requests']:>9.1%}{row['late'] * 1e3:>7.0f}ms"
            f"{row['exposed_in_run']:>11.3f}s{row['overlap_in_run']:>9.1%}{'  <- chosen' if row['chosen'] else ''}"
        )
    same = "the same tokens for every size" if report["same_tokens"] else "THE TOKENS DIFFER BETWEEN SIZES"
    return "\n".join([*lines, "", same])


def draw(report: dict[str, Any], path: Path) -> None:
    """Hidden and exposed KV time of each size."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'triptych[plot]'") from error
    rows = report["rows"]
    names = [f"{row['layers_per_offer']}{'*' if row['chosen'] else ''}" for row in rows]
    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    axes.bar(names, [row["transfer"] for row in rows], label="hidden", color="#9dc3a5")
    axes.bar(names, [row["exposed_of_requests"] for row in rows], label="after own prefill", color="#e8c07d")
    axes.bar(names, [row["exposed_in_run"] for row in rows], label="no prefill computes", color="#c0504d")
    axes.set_xlabel("layers an offer (* chosen)")
    axes.set_ylabel("KV time, s")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

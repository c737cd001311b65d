"""`triptych bench-engine`: one instance's engine on this machine, with the floor of every figure."""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.models.kernels.names import AUTO_KERNEL, CHOICES
from triptych.models.kv import KV_CODES
from triptych.models.weight_formats import AUTO, WEIGHT_FORMATS
from triptych.runtime.core.errors import ConfigError, TriptychError
from triptych.tools.config import ServeConfig
from triptych.tools.reports import STDOUT, check_outputs

if TYPE_CHECKING:
    from triptych.tools.bench.engine.batches import Load
    from triptych.tools.bench.engine.figures import Throughput
    from triptych.tools.bench.engine.report import Run
    from triptych.tools.bench.engine.rig import Rig
    from triptych.tools.bench.engine.startup import Start

DEFAULT_CACHE = ServeConfig().cache_dir
DTYPES = ("float32", "bfloat16")
PARTS = ("decode", "prefill", "mixed", "offline", "burst", "start")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default="dummy:smollm2-135m",
        help="a text model as for serve, or dummy:<preset> (default dummy:smollm2-135m)",
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--parts", default=",".join(PARTS[:-1]), help=f"of {','.join(PARTS)} (default all but start)")
    what.add_argument("--seconds", type=float, default=2.0, help="for each figure of steps and prompts (default 2)")
    what.add_argument(
        "--batches", default="1,8,32,64,128,256", help="sequences that decode (default 1,8,32,64,128,256)"
    )
    what.add_argument("--context", type=int, default=1024, help="tokens of each of them (default 1024)")
    what.add_argument("--lengths", default="512,2048,8192", help="tokens of prompts (default 512,2048,8192)")
    what.add_argument("--mixed", default="64x512", help="decodes x prompt tokens of a mixed step (default 64x512)")
    what.add_argument(
        "--offline", default="256x512x128", help="requests x tokens in x tokens out (default 256x512x128)"
    )
    what.add_argument("--burst", default="32x2048x1", help="the same, for prompts alone (default 32x2048x1)")
    what.add_argument(
        "--through", choices=("engine", "llm", "both"), default="engine", help="what runs offline and burst: core and engine, or `LLM` with the cluster in this process"
    )  # fmt: skip
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="auto: float32 on CPU, else bfloat16"
    )
    engine.add_argument(
        "--attention", default=AUTO_KERNEL, choices=CHOICES, help="the attention kernel, as serve has it (default auto)"
    )
    engine.add_argument(
        "--kv-cache-dtype",
        choices=("auto", *DTYPES, *KV_CODES),
        default="auto",
        help="of KV pages (default auto: --dtype)",
    )
    engine.add_argument(
        "--weights",
        choices=(AUTO, *WEIGHT_FORMATS),
        default=AUTO,
        help="how matrices are stored (default auto: --dtype)",
    )
    engine.add_argument("--tp", type=int, default=1, help="devices (default 1)")
    engine.add_argument("--page-size", "--block-size", type=int, default=16)
    engine.add_argument(
        "--max-num-seqs", type=int, default=256, help="sequences at once of offline, burst and start (default 256)"
    )
    engine.add_argument(
        "--max-num-batched-tokens", type=int, default=2048, help="prompt tokens a step; longer prompts are also measured in chunks of it (default 2048)"
    )  # fmt: skip
    engine.add_argument("--compile-threads", type=int, default=4, help="programs compiled at once (default 4)")
    engine.add_argument(
        "--cache-dir", default=DEFAULT_CACHE, help=f"models and compiled programs (default {DEFAULT_CACHE})"
    )
    out = parser.add_argument_group("report")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON ('-' for stdout)")
    out.add_argument("--plot", type=Path, metavar="PNG", help="draw times over their floors (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    parts = _words(args.parts, "--parts", PARTS)
    batches, lengths = numbers(args.batches, "--batches"), numbers(args.lengths, "--lengths")
    positive = ("context", "tp", "page_size", "max_num_seqs", "max_num_batched_tokens", "compile_threads")
    if wrong := [name for name in positive if getattr(args, name) < 1]:
        raise ConfigError(f"{', '.join('--' + name.replace('_', '-') for name in wrong)} must be positive")
    if not 0 <= args.seconds < math.inf:
        raise ConfigError(f"--seconds is {args.seconds}; expected 0 or more")
    for flag in ("kv_cache_dtype", "weights"):
        if getattr(args, flag) != "auto" and (args.through != "engine" or "start" in parts):
            name = "--" + flag.replace("_", "-")
            raise ConfigError(f"{name} is for parts that run through the engine: leave out --through and start")
    check_outputs(args.json, args.plot)
    # Late: they import jax, and a wrong flag is reported without waiting for it.
    from triptych.tools.bench.engine import ceilings
    from triptych.tools.bench.engine.batches import Load, measure_batch
    from triptych.tools.bench.engine.opening import open_rig
    from triptych.tools.bench.engine.prompts import measure_prompts
    from triptych.tools.bench.engine.steps import measure_decode, measure_mixed

    mixed = parse_mixed(args.mixed)
    loads = {"offline": Load.parse(args.offline, "--offline"), "burst": Load.parse(args.burst, "--burst")}
    starts = measured_starts(args) if "start" in parts else []  # before this process takes the devices
    batches_of_llm = []
    if args.through != "engine":
        batches_of_llm = [measured_through_llm(args, name, load) for name, load in loads.items() if name in parts]
    rig = open_rig(args, _tell)
    found = begin(args, rig)
    found.starts, found.batches = starts, batches_of_llm
    # A part's figures are added one by one: those before a failure stay.
    measures = {
        "decode": lambda: found.figures.extend(measure_decode(rig, batches, args.context)),
        "prefill": lambda: found.figures.extend(measure_prompts(rig, lengths, args.max_num_batched_tokens)),
        "mixed": lambda: found.figures.extend(measure_mixed(rig, *mixed, args.context)),
    }
    if args.through != "llm":
        limits = {"sequences": args.max_num_seqs, "chunk": args.max_num_batched_tokens}
        for name, load in loads.items():
            measures[name] = lambda name=name, load=load: found.batches.append(measure_batch(rig, name, load, **limits))
    for part in parts:
        if part in measures:
            attempt(found, part, measures[part])
    found.ceilings = found.ceilings.best_of(ceilings.measure(rig.mesh.devices.flat[0], rig.dtype))
    return tell_all(args, found)


def attempt(found: Run, part: str, measure: Callable[[], object]) -> None:
    """A part that fails (no memory for its pool, a kernel that refuses) is reported, and the others go on."""
    try:
        measure()
    except (TriptychError, RuntimeError, ValueError) as error:
        found.failed[part] = f"{type(error).__name__}: {str(error)[:500]}"
        _tell(f"{part} failed: {found.failed[part]}")
    gc.collect()  # the part's pools: the next one needs the memory


def begin(args: argparse.Namespace, rig: Rig) -> Run:
    """A run with the machine's ceilings."""
    from triptych.tools.bench.engine import ceilings
    from triptych.tools.bench.engine.report import Run

    _tell("probes")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    return Run(
        settings | {"dtype": rig.dtype, "attention": rig.attention},
        rig.loaded.config,
        ceilings.measure(rig.mesh.devices.flat[0], rig.dtype, _tell),
    )


def tell_all(args: argparse.Namespace, found: Run) -> int:
    """Print and write what was found; the exit status."""
    from triptych.tools.bench.engine import report

    print(report.tables(found), file=sys.stderr if args.json == STDOUT else sys.stdout)
    if args.json is not None:
        text = json.dumps(report.as_json(found), indent=1) + "\n"
        sys.stdout.write(text) if args.json == STDOUT else args.json.write_text(text, encoding="utf-8")
    if args.plot is not None:
        report.draw(found, args.plot)
    return 1 if found.failed else 0


def measured_starts(args: argparse.Namespace) -> list[Start]:
    from triptych.tools.bench.engine.rig import model_len
    from triptych.tools.bench.engine.startup import StartSettings, measure_starts

    settings = StartSettings(
        args.model, args.cache_dir, args.dtype, args.tp, args.max_num_seqs, model_len(args.context + 1), args.max_num_batched_tokens, args.compile_threads,
        attention=args.attention,
    )  # fmt: skip
    return measure_starts(settings, _tell)


def measured_through_llm(args: argparse.Namespace, name: str, load: Load) -> Throughput:
    import jax

    from triptych.models.hub.resolve import resolve_model
    from triptych.models.hub.text import open_text
    from triptych.tools.bench.engine.batches import measure_through_llm
    from triptych.tools.bench.engine.startup import chosen_dtype

    cache = Path(args.cache_dir).expanduser()
    vocab = open_text(resolve_model(args.model, cache, progress=_tell)).config.vocab_size
    _tell(f"{name} through LLM")
    return measure_through_llm(
        name, load, args.model, cache, vocab=vocab, sequences=args.max_num_seqs, chunk=args.max_num_batched_tokens, tp=args.tp,
        dtype=chosen_dtype(args.dtype, jax.default_backend()), compile_threads=args.compile_threads, attention=args.attention,
    )  # fmt: skip


def parse_mixed(text: str) -> tuple[int, int]:
    """(decodes, prompt tokens) from "64x512". Raises ConfigError."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--mixed is {text!r}; expected DECODESxTOKENS, such as 64x512")
    return int(parts[0]), int(parts[1])


def _words(text: str, flag: str, known: Sequence[str]) -> list[str]:
    words = [part.strip() for part in text.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(
            f"{flag} {text}: unknown {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}"
        )
    return words


def numbers(text: str, flag: str) -> list[int]:
    words = [part.strip() for part in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{flag} is {text!r}; expected positive numbers")
    return sorted(set(map(int, words)))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""`triptych compile-check`: every program of a model through the real TPU compiler, for a slice that need not be there, and whether it all fits.

A text model is what an engine with both roles runs, and what moves its KV pages, with as many pages as the chips have room for beside the weights. Of programs
that differ in their sizes alone the largest is compiled, unless `--every`. Programs over all layers are compiled for one layer and for two; the
second one's share counts for every further layer (`compiled.deeper`), unless `--full-depth`. Encoders are compiled with all that moves their embeddings.

Exit status: 0 if everything fits, 1 if not, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.models.errors import QuantisationError
from triptych.models.kernels.names import PLATFORMS
from triptych.models.weight_formats import AUTO, WEIGHT_FORMATS
from triptych.runtime.core.errors import ConfigError
from triptych.tools.config import ServeConfig
from triptych.tools.tpu.compiled import ENVIRONMENT, Compiled, DoesNotFit, compile_lowered, deeper

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from triptych.models.config import ModelConfig
    from triptych.tools.tpu.models import Published
    from triptych.tools.tpu.text import Piece, TextEngine

MIB, GIB = 1 << 20, 1 << 30
KERNELS = tuple(name for name, platform in PLATFORMS.items() if platform in (None, "tpu"))


@dataclass(frozen=True)
class Checked:
    """One program: what it takes, or why it was not compiled. `beside_bytes` is on the chip while it runs without being given to it."""

    name: str
    compiled: Compiled | None
    beside_bytes: int = 0
    error: str = ""

    def needs(self) -> int:
        """Bytes of a chip while it runs."""
        return 0 if self.compiled is None else self.compiled.peak_bytes + self.beside_bytes

    def fits(self, memory_bytes: int) -> bool:
        return self.compiled is not None and self.needs() <= memory_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="the slice, such as v6e:2x4")
    parser.add_argument(
        "--model", required=True, help="a published model, dummy:<preset>, a folder with config.json, or ORG/NAME"
    )
    parser.add_argument(
        "--tp", type=int, help="chips an instance (default: the largest power of two that heads and slice allow)"
    )
    parser.add_argument("--max-model-len", type=int, default=4096, help="longest sequence in tokens (default 4096)")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="most sequences of a step (default 32)")
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=2048, help="most prompt tokens of a step (default 2048)"
    )
    parser.add_argument("--page-size", "--block-size", type=int, default=16, help="tokens a KV page (default 16)")
    parser.add_argument(
        "--memory-fraction", type=float, default=0.9, help="of a chip, for weights and KV pages (default 0.9)"
    )
    parser.add_argument("--attention", default="tpu", choices=KERNELS, help="attention kernel (default tpu)")
    parser.add_argument(
        "--weights",
        default=AUTO,
        choices=(AUTO, *WEIGHT_FORMATS),
        help="how a text model's matrices are stored (default auto: bfloat16)",
    )
    parser.add_argument(
        "--kv-layer-groups", type=int, metavar="LAYERS", help="compute prompts by groups of so many layers"
    )
    parser.add_argument("--every", action="store_true", help="compile programs of all sizes, not only the largest")
    parser.add_argument(
        "--only", action="append", metavar="PREFIX", help="programs whose names begin so; again for several"
    )
    parser.add_argument("--full-depth", action="store_true", help="compile all layers of every program")
    parser.add_argument("--layers", type=int, help="of an encoder (default: its own)")
    parser.add_argument("--slots", type=int, help="of the largest encode program (default: what serving compiles)")
    parser.add_argument("--json", action="store_true", help="one object a line instead of a table")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path(ServeConfig().cache_dir), help="where a fetched config.json is kept"
    )


def _check_numbers(args: argparse.Namespace) -> None:
    names = (
        "tp",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "page_size",
        "kv_layer_groups",
        "layers",
        "slots",
    )
    if wrong := [name for name in names if getattr(args, name) is not None and getattr(args, name) < 1]:
        raise ConfigError(f"{', '.join('--' + name.replace('_', '-') for name in wrong)} must be positive")
    if not 0.0 < args.memory_fraction <= 1.0:
        raise ConfigError(f"--memory-fraction is {args.memory_fraction}; expected a share in (0, 1]")


def run(args: argparse.Namespace) -> int:
    _check_numbers(args)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from triptych.models.config import ModelConfig
    from triptych.sharding.heads import IncompatibleTpError
    from triptych.sharding.tpu import TARGETS, TpuCompilerError
    from triptych.tools.tpu.named import models_named

    target = TARGETS.get(args.target)
    if target is None:
        raise ConfigError(f"no TPU target {args.target!r}; known: {', '.join(TARGETS)}")
    fits, report = True, Report(args.json, args.target, target.memory_bytes)
    try:
        for model in models_named(args.model, args.cache_dir):
            if isinstance(model, ModelConfig):
                mesh = _mesh(args, _tp(args.tp, model, target.chips))
                programs = _check_text(_engine(args, model, mesh, target.memory_bytes), args, report)
            else:
                programs = _check_encoder(model, _mesh(args, args.tp or target.chips), args)
            for program in programs:
                fits &= report.row(args.model, program)
    except (TpuCompilerError, IncompatibleTpError, QuantisationError) as error:
        raise ConfigError(str(error)) from error
    if not report.rows:
        raise ConfigError(f"no program of {args.model} has a name that begins with {' or '.join(args.only)}")
    report.verdict(args.model, fits)
    return 0 if fits else 1


def _tp(asked: int | None, model: ModelConfig, chips: int) -> int:
    from triptych.sharding.heads import fitting_tp_sizes, head_layout

    if asked is None:
        fitting = fitting_tp_sizes(model.num_heads, model.num_kv_heads, chips)
        return max(size for size in fitting if size & (size - 1) == 0)
    if not 1 <= asked <= chips:
        raise ConfigError(f"--tp is {asked}; the slice has {chips} chips")
    head_layout(model.num_heads, model.num_kv_heads, asked)
    return asked


def _mesh(args: argparse.Namespace, tp: int) -> Mesh:
    from triptych.sharding.tpu import TARGETS, tpu_mesh

    target = TARGETS[args.target]
    if not 1 <= tp <= target.chips:
        raise ConfigError(f"--tp is {tp}; the slice has {target.chips} chips")
    return tpu_mesh(target, tp)


def _engine(args: argparse.Namespace, model: ModelConfig, mesh: Mesh, memory_bytes: int) -> TextEngine:
    from triptych.tools.tpu.text import Limits, TextEngine

    step = args.kv_layer_groups
    limits = Limits(
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        chunk_tokens=args.max_num_batched_tokens,
        page_size=args.page_size,
        memory_fraction=args.memory_fraction,
        attention=args.attention,
        weights=args.weights,
        kv_layer_groups=step if step is not None and step < model.num_layers else None,  # a group of all is no cut
    )
    return TextEngine(model, mesh, limits, memory_bytes)


def _check_text(engine: TextEngine, args: argparse.Namespace, report: Report) -> Iterator[Checked]:
    try:
        pages = engine.num_pages
    except ConfigError as error:
        yield Checked("weights and pages", None, error=error.message)
        return
    report.about(
        f"{engine.model.name} over {engine.mesh.size} of the chips: {engine.weight_bytes / GIB:.2f} GiB of weights and "
        f"{engine.pool_bytes / GIB:.2f} GiB for {(pages - 1) * args.page_size} cached tokens a chip, attention {args.attention}"
    )
    pieces = engine.pieces(every=args.every)
    deepest = 2 if engine.limits.kv_layer_groups is None else 4  # layers of the deeper of two shallow models
    alike = len(set(engine.model.layer_windows)) == 1 and deepest <= engine.model.num_layers and not args.full_depth
    shallow = [engine.pieces(layers, every=args.every) for layers in (1, 2)] if alike else []
    for name, piece in pieces.items():
        if not _chosen(name, args):
            continue
        try:
            compiled = _compile(piece, [_namesake(found, name) for found in shallow])
        except DoesNotFit as error:
            yield Checked(name, None, error=str(error))
        else:
            yield Checked(name, compiled, beside_bytes=engine.resident_bytes - piece.own_bytes)


def _namesake(pieces: dict[str, Piece], name: str) -> Piece:
    """The piece of that name. Where layers are left over, the last group has a program of its own; with fewer layers all groups are alike."""
    return pieces[name] if name in pieces else pieces[f"{name.rpartition(' ')[0]} 0"]


def _chosen(name: str, args: argparse.Namespace) -> bool:
    return args.only is None or name.startswith(tuple(args.only))


def _compile(piece: Piece, shallow: list[Piece]) -> Compiled:
    """As a whole, or from programs of fewer layers that have its name."""
    if not shallow or piece.layers <= shallow[-1].layers:
        return compile_lowered(piece.lower())
    few, more = shallow
    steps, rest = divmod(piece.layers - more.layers, more.layers - few.layers)
    # Layers that do not make a whole step count as one: an upper bound.
    return deeper(compile_lowered(few.lower()), compile_lowered(more.lower()), steps + (rest > 0))


def _check_encoder(model: Published, mesh: Mesh, args: argparse.Namespace) -> Iterator[Checked]:
    from triptych.tools.tpu.models import PublishedVision
    from triptych.tools.tpu.programs import lowered_programs

    model = model if args.layers is None else model.shallow(args.layers)
    if args.slots is not None and isinstance(model, PublishedVision):
        model = replace(model, slots=args.slots)
    for name, lowered in lowered_programs(model, mesh, largest=not args.every):
        if not _chosen(name, args):
            continue
        try:
            yield Checked(name, compile_lowered(lowered))
        except DoesNotFit as error:
            yield Checked(name, None, error=str(error))


class Report:
    """Writes rows to standard output as they come: a table, or JSON by lines."""

    HEAD = f"{'program':32} {'s':>6} {'args MiB':>9} {'temp MiB':>9} {'of HBM':>7} {'GFLOP':>9} {'MB moved':>9}"

    def __init__(self, as_json: bool, target: str, memory_bytes: int) -> None:
        self._json, self._target, self._memory_bytes = as_json, target, memory_bytes
        self.rows = 0

    def about(self, text: str) -> None:
        print(text, file=sys.stderr if self._json else sys.stdout, flush=True)

    def row(self, model: str, program: Checked) -> bool:
        """Write a row; returns whether the program fits."""
        fits = program.fits(self._memory_bytes)
        self.rows += 1
        if self._json:
            found: dict[str, Any] = {} if program.compiled is None else asdict(program.compiled)
            row = {"target": self._target, "model": model, "name": program.name, "memory_bytes": self._memory_bytes}
            row |= {**found, "beside_bytes": program.beside_bytes, "needs_bytes": program.needs(), "fits": fits}
            print(json.dumps(row | ({"error": program.error} if program.error else {})), flush=True)
            return fits
        if self.rows == 1:
            print(self.HEAD)
        print(self._line(program, fits), flush=True)
        return fits

    def _line(self, program: Checked, fits: bool) -> str:
        compiled = program.compiled
        if compiled is None:
            return f"{program.name:32} does not fit: {program.error}"
        return (
            f"{program.name:32} {compiled.seconds:6.1f} {compiled.argument_bytes / MIB:9.1f} {compiled.temp_bytes / MIB:9.1f} "
            f"{program.needs() / self._memory_bytes:7.1%} {compiled.flops / 1e9:9.2f} {compiled.bytes_accessed / 1e6:9.1f}"
            + ("" if fits else "  does not fit")
        )

    def verdict(self, model: str, fits: bool) -> None:
        self.about(
            f"{model} {'fits' if fits else 'does not fit'} {self._target}, {self._memory_bytes / GIB:.0f} GiB a chip"
        )

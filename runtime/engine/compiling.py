"""Compiling programs ahead of time: lowered one after another, compiled by a few threads. What was kept by an earlier start is loaded instead.

Tracing holds the interpreter lock and gains nothing from threads; XLA releases it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax

from triptych.runtime.engine.compile_guard import cache_hits, cache_hits_of_thread
from triptych.runtime.engine.compiler_options import Options
from triptych.runtime.engine.kept_programs import KeptPrograms

log = logging.getLogger(__name__)

# XLA's passes recurse deeply on models of many layers; the usual 8 MiB of a thread's stack overflow.
COMPILE_STACK_BYTES = 64 << 20

MOST_THREADS = 16  # lowering, which is one after another, does not keep more of them busy

Key = tuple[Any, ...]
Progress = Callable[[str, int, int], None]
Executable = Callable[..., Any]


@dataclass(frozen=True)
class CompileReport:
    """How many programs there are, and the seconds it took: tracing and lowering, and all of it (other programs compile meanwhile).

    `from_cache`: programs that were kept, or that the persistent cache had. `warm_up_seconds`: making pools and running every program once, after `seconds`.
    """

    programs: int
    lowering_seconds: float
    seconds: float
    from_cache: int = 0
    warm_up_seconds: float = 0.0


@dataclass(frozen=True)
class Program:
    """A program before it is compiled. `key` is its place in the table of compiled ones. `options`: of the compiler."""

    key: Key
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    outputs: Any
    donated: tuple[int, ...] = ()
    options: Options = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join(str(part) for part in self.key)

    def lower(self) -> jax.stages.Lowered:
        def named(*arguments: Any) -> Any:
            return self.run(*arguments)

        # Profiles and compiler logs show this name.
        named.__name__ = "_".join(part for part in re.split(r"\W+", self.name) if part)
        return jax.jit(named, out_shardings=self.outputs, donate_argnums=self.donated).lower(*self.arguments)


def usual_threads(platform: str) -> int:
    """Programs to compile at once: two where XLA's own threads fill the host, or else most of its cores."""
    return 2 if platform == "cpu" else min(max((os.cpu_count() or 4) - 2, 2), MOST_THREADS)


class CompiledBeside(Protocol):
    """Something with programs of its own that are compiled with an engine's."""

    def programs(self) -> Sequence[Program]: ...

    def add(self, compiled: Mapping[Key, Executable]) -> None:
        """Take its own out of everything that was compiled."""
        ...


def compile_programs(
    programs: Sequence[Program], threads: int, progress: Progress, kept: KeptPrograms | None = None
) -> tuple[dict[Key, Executable], CompileReport]:
    """Compile everything, by key, but for what was `kept`; and keep it. `progress(name, done, total)` is called on this thread.

    A program that the compiler fails with is compiled once more when nothing else is: compilers of GPUs start processes and measure candidates, which
    can fail while many do so. Raises jax.errors.JaxRuntimeError if it fails again.
    """
    start, hits = time.perf_counter(), cache_hits()
    pending: dict[Future[Executable], tuple[Program, jax.stages.Lowered]] = {}
    failed: list[tuple[Program, jax.stages.Lowered]] = []
    compiled: dict[Key, Executable] = {}

    def make(program: Program, lowered: jax.stages.Lowered) -> Executable:
        hits = cache_hits_of_thread()
        made = lowered.compile(dict(program.options))
        if kept is not None:
            kept.keep(program, lowered, made, compiled_here=cache_hits_of_thread() == hits)
        return made

    def submit(pool: ThreadPoolExecutor, program: Program, lowered: jax.stages.Lowered) -> None:
        pending[pool.submit(make, program, lowered)] = (program, lowered)

    def done(program: Program, made: Executable) -> None:
        compiled[program.key] = made
        progress(program.name, len(compiled), len(programs))

    def settle(finished: Iterable[Future[Executable]], last: bool = False) -> None:
        for future in finished:
            program, lowered = pending.pop(future)
            try:
                made = future.result()
            except jax.errors.JaxRuntimeError as error:
                if last:
                    raise
                log.warning("%s is compiled again when all others are: %s", program.name, str(error).split("\n")[0])
                failed.append((program, lowered))
            else:
                done(program, made)

    previous = threading.stack_size(COMPILE_STACK_BYTES)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool:
            if kept is not None:
                for program, made in zip(programs, pool.map(kept.load, programs), strict=True):
                    if made is not None:
                        done(program, made)
            loaded, began = len(compiled), time.perf_counter()
            for program in programs:
                if program.key not in compiled:
                    submit(pool, program, program.lower())
                    settle([future for future in pending if future.done()])
            lowering = time.perf_counter() - began
            settle(as_completed(list(pending)))
            for program, again in failed:
                submit(pool, program, again)
                settle(as_completed(list(pending)), last=True)
    finally:
        threading.stack_size(previous)
    if kept is not None and loaded < len(programs):
        kept.forget_old()
    seconds = time.perf_counter() - start
    return compiled, CompileReport(len(programs), lowering, seconds, loaded + cache_hits() - hits)

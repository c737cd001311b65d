"""`python -m triptych.tools.bench.engine.kernels MODEL`: which kernels a decode step or a prompt runs on the device, how often and for how long, and what the host does.

The engine, its programs and the loop are those of `triptych bench-engine`, and so are the flags; of `--batches` and `--lengths` each is profiled. While JAX's profiler runs, XLA launches kernels one by one and not as CUDA
graphs: *busy* is the device's time, and what a step takes without the profiler is printed beside it. With
`XLA_FLAGS=--xla_enable_command_buffers_during_profiling=true` they stay graphs, and the host's part is that of a step as it is served. Calls of the host contain each other.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.tools.bench.engine.rig import Rig

STEPS = 8  # that are profiled
MOST_KERNELS = 20  # that are printed
MOST_CALLS = 25  # of the host
DISPATCH = "PjitFunction"  # a call of a program
HOST_DETAIL = 3  # XLA's own calls, too, such as bringing a CUDA graph up to date and launching it


@dataclass(frozen=True)
class Kernels:
    """What one device ran. `spent`, seconds, and `count`: by kernel. `busy`: seconds in which any ran; `span`: from the first one's begin to the last one's end."""

    spent: Counter[str]
    count: Counter[str]
    busy: float
    span: float


def kernels_of(events: Iterable[tuple[str, float, float]]) -> Kernels:
    """From (name, begin, end) of each kernel, in seconds. Numbers that tell instances of one kernel apart are left out of names."""
    spent, count, busy, first, last = Counter[str](), Counter[str](), 0.0, None, 0.0
    for name, begin, end in sorted(events, key=lambda event: event[1:]):
        kind = re.sub(r"([_.]\d+)+$", "", name)
        spent[kind] += end - begin  # pyright: ignore[reportArgumentType] - a Counter of seconds
        count[kind] += 1
        first = begin if first is None else first
        busy += max(0.0, end - max(begin, last))
        last = max(last, end)
    return Kernels(spent, count, busy, last - (first or 0.0))


def profiled(run: Callable[[], object]) -> tuple[Kernels, Kernels]:
    """What the first GPU ran meanwhile, nothing where there is none; and the calls of the thread that dispatches."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.host_tracer_level, options.python_tracer_level = HOST_DETAIL, 0
    with tempfile.TemporaryDirectory(prefix="triptych-profile-") as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        gpus = [plane for plane in planes if plane.name.startswith("/device:GPU")]
        threads = [line for plane in planes if plane.name.startswith("/host:CPU") for line in plane.lines]
        # Other lines of a device say what its streams do once more, in other words.
        streams = [line for line in gpus[0].lines if line.name.startswith("Stream")] if gpus else []
        dispatching = max(threads, key=lambda line: sum(DISPATCH in event.name for event in line.events), default=None)
        return kernels_of(_events(streams)), kernels_of(_events(() if dispatching is None else (dispatching,)))


def _events(lines: Iterable[Any]) -> list[tuple[str, float, float]]:
    return [
        (event.name, event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9)
        for line in lines
        for event in line.events
    ]


def table(title: str, kernels: Kernels, calls: Kernels, steps: int, plain: float) -> str:
    """By step. `plain`: seconds of one without the profiler."""
    count, span, busy = (number / steps for number in (sum(kernels.count.values()), kernels.span, kernels.busy))
    by_profiler = f"{span * 1e3:.2f} ms, of which the device is busy {busy * 1e3:.2f} ms with {count:.0f} kernels"
    lines = [f"{title}: {plain * 1e3:.2f} ms; profiled, {by_profiler}"]
    for of, most in ((kernels, MOST_KERNELS), (calls, MOST_CALLS)):
        lines += ["the host's calls"] if of is calls else []
        for name, seconds in of.spent.most_common(most):
            count, each = of.count[name] / steps, seconds / of.count[name]
            lines.append(f"  {seconds / steps * 1e6:10.1f} us {count:7.1f} x {each * 1e6:9.2f} us  {name[:90]}")
    return "\n".join(lines)


def profile_decode(rig: Rig, batch: int, context: int) -> str:
    """The table of a decode step."""
    from triptych.tools.bench.engine.rig import decoding
    from triptych.tools.bench.engine.steps import LONGEST_ROUND, decode_engine, first_context

    engine = decode_engine(rig, [batch], context)
    loop = decoding(engine, batch, first_context(context), LONGEST_ROUND)

    def steps() -> None:
        for _ in range(STEPS):
            loop.step()

    steps()  # warms up
    plain = _seconds(steps) / STEPS
    return table(f"decode step, batch {batch}, context {context}", *profiled(steps), STEPS, plain)


def profile_prompt(rig: Rig, length: int, chunk: int) -> str:
    """The table of a prompt that is computed `chunk` tokens a step."""
    from triptych.tools.bench.engine.prompts import chunk_demands
    from triptych.tools.bench.engine.rig import loop_over, random_prompt, request

    demands = list(chunk_demands(rig, length, chunk))
    engine, _ = rig.engine(
        rig.config(sequences=1, longest=length + 1, chunk=min(chunk, length), tokens=length, demands=demands)
    )
    loop = loop_over(engine, chunk=chunk)
    numbers = iter(range(sys.maxsize))

    def prompt() -> None:
        number = next(numbers)
        loop.submit(request(number, random_prompt(rig.loaded.config.vocab_size, length, seed=number), 1))
        while loop.step() is not None:
            pass

    prompt()  # warms up
    plain = _seconds(prompt)
    return table(f"prompt of {length} tokens, {min(chunk, length)} a step", *profiled(prompt), 1, plain)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    from triptych.tools.bench.engine import command

    parser = argparse.ArgumentParser(prog="python -m triptych.tools.bench.engine.kernels", description=__doc__)
    command.add_arguments(parser)
    args = parser.parse_args(argv)
    from triptych.tools.bench.engine.opening import open_rig

    rig = open_rig(args, lambda text: print(text, file=sys.stderr, flush=True))
    for batch in command.numbers(args.batches, "--batches") if "decode" in args.parts else ():
        print(profile_decode(rig, batch, args.context), flush=True)
    for length in command.numbers(args.lengths, "--lengths") if "prefill" in args.parts else ():
        print(profile_prompt(rig, length, args.max_num_batched_tokens), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

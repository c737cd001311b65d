"""The `triptych` command. Each subcommand is a module of its own, imported when it is called: `triptych generate` never imports jax.

A command module has `add_arguments(parser)` and `run(args) -> int` (the exit status). Exit status 1 is a failure, 2 a wrong call or
configuration.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from triptych.runtime.core.errors import ConfigError, TriptychError

DEVICE_PACKAGES = frozenset(
    {"jax", "jaxlib", "flax", "orbax", "gguf", "safetensors", "jaxtyping", "ml_dtypes", "tensorstore"}
)


class CommandModule(Protocol):
    """What a subcommand's module provides."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Command:
    """One subcommand: the module that implements it and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "serve": Command("triptych.tools.serve", "serve a model: scheduler, gateway and instances on this machine"),
    "generate": Command("triptych.tools.generate", "complete one prompt on a running server"),
    "chat": Command("triptych.tools.chat", "talk to a running server"),
    "transcribe": Command("triptych.tools.transcribe", "print what is said in a sound file"),
    "info": Command("triptych.tools.info", "show what a running server serves and how busy it is"),
    "top": Command("triptych.tools.top", "watch a running cluster"),
    "http": Command("triptych.tools.http", "serve OpenAI's HTTP API before a running server"),
    "bench": Command("triptych.tools.bench.command", "measure a running server under load, or two against each other"),
    "faults": Command("triptych.tools.faults", "run random fault schedules on a virtual cluster, or replay one"),
    "floor": Command("triptych.tools.bench.floor", "measure one decode step against the time its bytes need"),
    "accuracy": Command(
        "triptych.tools.bench.accuracy", "compare formats of weights on real text: perplexity, next tokens"
    ),
    "fidelity": Command(
        "triptych.tools.fidelity", "compare what the simulator predicts with a live deployment on this machine"
    ),
    "bench-scheduler": Command(
        "triptych.tools.bench_scheduler", "measure what a request costs the scheduler, by size of cluster"
    ),
    "bench-engine": Command(
        "triptych.tools.bench.engine.command",
        "measure decode, prefill, batches and starts of one engine against this machine's ceilings",
    ),
    "bench-sweep": Command(
        "triptych.tools.bench.sweep.command",
        "goodput of topologies with equally many devices, served on this host under the same load",
    ),
    "bench-pareto": Command(
        "triptych.tools.bench.pareto",
        "tokens a second by device against by user, from reports of bench at several rates",
    ),
    "bench-overlap": Command(
        "triptych.tools.bench.overlap", "measure how much of the KV transfer hides behind prefill, by layers an offer"
    ),
    "bench-speculation": Command(
        "triptych.tools.bench.speculation",
        "measure what guessing tokens saves, on text that repeats and text that does not",
    ),
    "simulate": Command("triptych.tools.simulate", "simulate a cluster under load: objectives met, goodput, occupancy"),
    "calibrate": Command("triptych.tools.calibrate", "measure step times of a model on this machine, for simulate"),
    "compile-check": Command(
        "triptych.tools.tpu.check", "compile every program of a model for TPUs that are not here, and see what fits"
    ),
    "convert": Command("triptych.tools.convert", "write a model as an Orbax checkpoint"),
    "scheduler": Command("triptych.tools.scheduler", "run only the scheduler"),
    "gateway": Command("triptych.tools.gateway", "run only a gateway, which clients call"),
    "worker": Command("triptych.tools.worker", "run only a worker with some instances"),
    "drain": Command("triptych.tools.drain", "take an instance out of a running cluster"),
    "switch-role": Command("triptych.tools.switch_role", "let an instance go on with other roles"),
    "certs": Command("triptych.tools.certs", "make certificates to try TLS with"),
    "fuzz": Command("triptych.tools.trials.fuzz", "send strange input to every RPC and route of a toy deployment"),
    "chaos": Command(
        "triptych.tools.trials.chaos", "kill, freeze and cut off processes of a toy deployment under load"
    ),
    "pressure": Command(
        "triptych.tools.trials.pressure", "slow prefill down under requests with pictures and see memory level off"
    ),
    "soak": Command("triptych.tools.trials.soak", "send many requests through a toy deployment and see what grows"),
    "version": Command("triptych.tools.version", "show the versions of Triptych and of what it runs on"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status. Errors meant for users become one message on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = ["version"] if arguments[0] in ("-V", "--version") else arguments
    if name not in COMMANDS:
        print(f"triptych: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        command = cast(CommandModule, importlib.import_module(COMMANDS[name].module))
        parser = argparse.ArgumentParser(
            prog=f"triptych {name}", description=COMMANDS[name].summary, allow_abbrev=False
        )
        command.add_arguments(parser)
        status = command.run(parser.parse_args(rest))
        sys.stdout.flush()
        return status
    except TriptychError as error:
        hint = f" (retry in {error.retry_after:g} s)" if error.retry_after is not None else ""
        print(f"triptych {name}: {error.status.name}: {error.message}{hint}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in DEVICE_PACKAGES:
            raise
        print(
            f"triptych {name}: {error.name} is not installed; pip install 'triptych[cpu]' (or [cuda], [tpu])",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the interpreter complains again when it flushes at exit
        return 141  # 128 + SIGPIPE: whoever read our output has seen enough


def usage() -> str:
    """All commands with a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return (
        "usage: triptych COMMAND [OPTIONS]\n\n"
        + "\n".join(lines)
        + "\n\n`triptych COMMAND --help` shows a command's options."
    )


if __name__ == "__main__":
    sys.exit(main())

"""`triptych bench`: measure a running server, or compare two, under an open-loop load."""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import secrets
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import ConfigError
from triptych.tools.bench import compare, processes, report, runner, workload
from triptych.tools.bench.client import LoadClient
from triptych.tools.bench.grpc_client import GrpcLoadClient
from triptych.tools.bench.http_client import HttpLoadClient
from triptych.tools.bench.metrics import Record, Summary, parse_objectives, summarise
from triptych.tools.bench.workload import Item
from triptych.tools.connection import Connection
from triptych.tools.reports import check_outputs
from triptych.tools.settings import add_flags, resolve

_STDOUT = Path("-")
_REQUESTS = 64  # where neither --num-requests nor --window says how many


@dataclass(frozen=True)
class Target:
    """A server, and what the workload must know of its model. An `address` that is a URL is called over HTTP, the others over gRPC."""

    address: str
    model: str
    vocab: list[int]
    max_model_len: int

    def load_client(self, connection: Connection, share_prefixes: bool) -> LoadClient:
        """What sends one run."""
        run = secrets.token_hex(4)
        if _is_url(self.address):
            return HttpLoadClient(
                self.address, connection.token, model=self.model, share_prefixes=share_prefixes, run=run
            )
        client = AsyncClient(self.address, connection.token, connection.tls)
        return GrpcLoadClient(client, share_prefixes=share_prefixes, run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load")
    load.add_argument(
        "--num-requests",
        "--num-prompts",
        type=int,
        help=f"requests to measure (default {_REQUESTS}; with --window all that arrive in it)",
    )
    load.add_argument(
        "--rate",
        "--request-rate",
        type=float,
        default=4.0,
        help="requests per second; inf sends all at once (default 4)",
    )
    load.add_argument(
        "--arrivals", choices=("poisson", "uniform"), default="poisson", help="gaps between requests (default poisson)"
    )
    load.add_argument("--input-len", "--random-input-len", type=int, default=128, help="prompt tokens (default 128)")
    load.add_argument(
        "--output-len", "--random-output-len", type=int, default=32, help="tokens to generate (default 32)"
    )
    load.add_argument("--prompts", type=Path, metavar="FILE", help="text prompts, one a line, instead of random tokens")
    load.add_argument(
        "--ignore-eos",
        action="store_true",
        help="generate --output-len tokens for text prompts, too: the model cannot stop",
    )
    load.add_argument(
        "--trace",
        metavar="FILE",
        help="replay arrivals and lengths of a CSV (TIMESTAMP,ContextTokens,GeneratedTokens); built in are 'conversation' and 'code', an hour each, and 'azure', the first 300 of conversation",
    )
    load.add_argument("--speed", type=float, help="replay the trace so many times faster (default 1)")
    load.add_argument(
        "--nominal-rate",
        type=float,
        metavar="RATE",
        help="or so much faster or slower that the whole trace has this many requests per second on average",
    )
    load.add_argument(
        "--window", type=float, metavar="SECONDS", help="replay what arrives in the first SECONDS, by the scaled time"
    )
    load.add_argument(
        "--length-scale", type=float, default=1.0, help="multiply the trace's lengths by this (default 1)"
    )
    load.add_argument(
        "--max-output", type=int, metavar="TOKENS", help="generate at most so many for a request of the trace"
    )
    load.add_argument(
        "--warmup", type=int, default=3, help="requests before, one after the other, not measured (default 3)"
    )
    load.add_argument(
        "--share-prefixes",
        action="store_true",
        help="let equal prompts share cached KV (default: each request is salted)",
    )
    load.add_argument("--seed", type=int, default=0, help="of arrivals and random prompts (default 0)")
    load.add_argument(
        "--processes",
        type=int,
        default=1,
        help="that send the load and read the answers; more where the table says that requests were sent late (default 1)",
    )
    load.add_argument(
        "--http",
        metavar="URL",
        help="send the load to this OpenAI-compatible server; what it serves is asked from the gRPC server behind it (--address)",
    )
    out = parser.add_argument_group("report")
    out.add_argument(
        "--goodput",
        nargs="+",
        action="append",
        default=[],
        dest="goodputs",
        metavar="NAME:SECONDS",
        help="objectives, such as ttft:0.2 tpot:0.02; given again: another set, judged by itself",
    )
    out.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="run two servers (host:port or URL) in turns and print B over A"
    )
    out.add_argument("--rounds", type=int, default=3, help="turns of each with --compare (default 3)")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON ('-' for stdout)")
    out.add_argument("--plot", type=Path, metavar="PNG", help="draw latency distributions (needs matplotlib)")
    add_flags(parser, Connection)


def run(args: argparse.Namespace) -> int:
    connection = resolve(Connection, args)
    if args.warmup < 0 or min(args.rounds, args.processes) < 1:
        raise ConfigError("--rounds and --processes must be positive, --warmup not negative")
    args = resolve_load(args)
    check_outputs(args.json, args.plot)
    try:
        objectives = [parse_objectives(texts) for texts in args.goodputs]
        return asyncio.run(_bench(args, connection, objectives))
    except (ValueError, OSError) as error:  # a load or objective that cannot be, a file that is not there
        raise ConfigError(str(error)) from error


async def _bench(args: argparse.Namespace, connection: Connection, objectives: list[dict[str, float]]) -> int:
    addresses = args.compare or [args.http or connection.address]
    targets = [await _connect(address, connection) for address in addresses]
    vocab, context = min((t.vocab for t in targets), key=len), min(t.max_model_len for t in targets)
    items = build_items(args, vocab, context)
    sides = (
        [[await _one_run(args, connection, t, items)] for t in targets]
        if not args.compare
        else await _in_turns(args, connection, targets, items)
    )
    names = (
        addresses
        if len(set(addresses)) == len(addresses)
        else [f"{n} {a}" for n, a in zip("AB", addresses, strict=True)]
    )
    summaries = [[summarise(records, *objectives) for records in side] for side in sides]
    ratios = compare.ratios(summaries[0], summaries[1]) if args.compare else []
    runs: dict[str, tuple[Summary, list[Record]]] = {}
    for name, side, digest in zip(names, sides, summaries, strict=True):
        for number, (records, summary) in enumerate(zip(side, digest, strict=True), start=1):
            runs[name if len(side) == 1 else f"{name} round {number}"] = (summary, records)
    people = sys.stderr if args.json == _STDOUT else sys.stdout  # stdout then carries JSON alone
    for name, (summary, _) in runs.items():
        print(f"\n{name}\n{report.table(summary)}", file=people)
    if ratios:
        print(f"\n{report.ratio_table(ratios, names[0], names[1])}", file=people)
    if args.json is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "api_key"}
        settings["goodput"] = next(iter(args.goodputs), [])  # as before there could be several sets
        text = report.as_json(settings, runs, ratios)
        if args.json == _STDOUT:
            print(text)
        else:
            args.json.write_text(text)
    if args.plot is not None:
        report.plot(
            args.plot, {n: [r for records in side for r in records] for n, side in zip(names, sides, strict=True)}
        )
    return 0 if all(s.completed for s, _ in runs.values()) else 1


def resolve_load(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with what others decide filled in: `num_requests` stays None where a window counts, `speed` where a rate is nominal.

    Raises ConfigError for values that cannot be, and for flags that do not go together.
    """
    of_traces = {"--nominal-rate": args.nominal_rate, "--window": args.window, "--max-output": args.max_output}
    given = [flag for flag, value in of_traces.items() if value is not None]
    if given and args.trace is None:
        raise ConfigError(f"{', '.join(given)}: this is about replaying a trace; name one with --trace")
    if args.speed is not None and args.nominal_rate is not None:
        raise ConfigError("--speed and --nominal-rate both say how fast the trace is replayed; give one of them")
    for flag, value in (("--nominal-rate", args.nominal_rate), ("--window", args.window)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{flag} is {value}; expected a positive number")
    if args.speed is not None and not args.speed > 0:
        raise ConfigError(f"--speed is {args.speed}; expected a positive number, or inf for all at once")
    for flag, value in (("--num-requests", args.num_requests), ("--max-output", args.max_output)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} is {value}; expected at least 1")
    settled = argparse.Namespace(**vars(args))
    if args.num_requests is None and args.window is None:
        settled.num_requests = _REQUESTS
    if args.speed is None and args.nominal_rate is None:
        settled.speed = 1.0
    return settled


def build_items(args: argparse.Namespace, vocab: list[int], context: int) -> list[Item]:
    """The measured load that the flags (of `resolve_load`) describe, for a model with these token ids and this context length."""
    rng = random.Random(args.seed)
    if args.trace is not None:
        rows = workload.load_trace(args.trace)
        speed = args.speed if args.nominal_rate is None else args.nominal_rate / workload.mean_rate(rows)
        if args.window is not None:
            rows = workload.within(rows, speed, args.window)
        rows = rows[: args.num_requests]
        most = args.max_output or math.inf
        lengths = [r.input_tokens * args.length_scale + min(r.output_tokens * args.length_scale, most) for r in rows]
        if cut := sum(length > context for length in lengths):
            print(
                f"{cut} of {len(rows)} requests are longer than the model's {context} tokens and are cut to fit; --length-scale shrinks all alike",
                file=sys.stderr,
            )
        return workload.trace_items(
            rows,
            speed=speed,
            length_scale=args.length_scale,
            max_total=context,
            vocab=vocab,
            rng=rng,
            max_output=args.max_output,
        )
    times = (
        workload.poisson(args.num_requests, args.rate, rng)
        if args.arrivals == "poisson"
        else workload.uniform(args.num_requests, args.rate)
    )
    if args.prompts is not None:
        texts = [line for line in args.prompts.read_text().splitlines() if line.strip()]
        return workload.text_items(times, texts, output_tokens=args.output_len, ignore_eos=args.ignore_eos)
    if args.input_len + args.output_len > context:
        raise ConfigError(
            f"--input-len {args.input_len} + --output-len {args.output_len} exceed the model's {context} tokens"
        )
    return workload.random_items(
        times, input_tokens=args.input_len, output_tokens=args.output_len, vocab=vocab, rng=rng
    )


async def _connect(address: str, connection: Connection) -> Target:
    grpc_address = connection.address if _is_url(address) else address
    async with AsyncClient(grpc_address, connection.token, connection.tls) as client:
        await client.wait_ready(connection.wait or 5.0)
        info = await client.model_info()
    special = set(info.eos_token_ids)
    return Target(address, info.model, [t for t in range(info.vocab_size) if t not in special], info.max_model_len)


async def _one_run(args: argparse.Namespace, connection: Connection, target: Target, items: list[Item]) -> list[Record]:
    client = target.load_client(connection, args.share_prefixes)
    try:
        first, show = [items[i % len(items)] for i in range(args.warmup)], partial(_show, target.address)
        if args.processes == 1:
            await runner.warm_up(client, first)
            return await runner.run(client, items, show)
        make = partial(replace(target, vocab=[]).load_client, connection, args.share_prefixes)
        return await asyncio.to_thread(processes.run, make, items, args.processes, show, first)
    finally:
        await client.close()


async def _in_turns(
    args: argparse.Namespace, connection: Connection, targets: list[Target], items: list[Item]
) -> list[list[list[Record]]]:
    a, b = (lambda target=target: _one_run(args, connection, target, items) for target in targets)
    return list(await compare.interleave(a, b, args.rounds))


def _is_url(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _show(address: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{address}: {done}/{total}", end="", file=sys.stderr, flush=True)

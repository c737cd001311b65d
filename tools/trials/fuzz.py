"""`triptych fuzz`: strange input to every RPC of a deployment, and to its ports, while normal requests must go on working.

Every call is a case with a number, drawn from (seed, number) and the names of the deployment. A case is bad if its status is one that its method
must not give: UNKNOWN and INTERNAL above all, which say that the server did not understand what happened to it. In the end every process must live under its old pid,
none may have grown, and nothing may be held. Processes that decode media may come and go, and must not grow either.

With a model that sees, half of the requests bring files, good and bad ones, and so do uploads; worker doors get pixels that nobody asked for; and of the normal requests most are
about pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from triptych.proto.v1 import control_pb2, inference_pb2, transfer_pb2, worker_pb2
from triptych.runtime.client import AsyncClient
from triptych.runtime.core.errors import Status
from triptych.runtime.wire.auth import bearer_metadata
from triptych.tools.reports import check_outputs
from triptych.tools.trials import http_calls
from triptych.tools.trials.calls import CUT, LEFT, Ending, Method, call, methods_of, shout
from triptych.tools.trials.corpus import Conversation, Facts
from triptych.tools.trials.deployment import Deployment
from triptych.tools.trials.flags import add_address_arguments, opened
from triptych.tools.trials.flags import add_arguments as add_trial_arguments
from triptych.tools.trials.load import Spec, learn, send
from triptych.tools.trials.media_load import MODEL, fresh_kinds, media_kinds, sees
from triptych.tools.trials.strange import Kind, Source, noise
from triptych.tools.trials.uploads import Uploads
from triptych.tools.trials.watch import Level, Watch, table

INFERENCE = methods_of(inference_pb2.DESCRIPTOR.services_by_name["Inference"])
CONTROL = methods_of(control_pb2.DESCRIPTOR.services_by_name["Control"])
WORKER = methods_of(
    worker_pb2.DESCRIPTOR.services_by_name["Worker"], transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]
)
STANDARD = methods_of(
    health_pb2.DESCRIPTOR.services_by_name["Health"], reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
)
EVERYTHING = (*INFERENCE, *CONTROL, *WORKER, *STANDARD)
EXPECTED = frozenset(
    {"OK", LEFT, CUT, "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"}
)  # fmt: skip
"""Statuses that say what was wrong with a call. UNIMPLEMENTED: now and then a service is asked for at a door where it is not served."""
ALSO: Mapping[str, frozenset[str]] = {
    "Inference.Generate": frozenset({"CANCELLED", "UNAVAILABLE"}),  # aborted by another case; placed on a fuzzed worker
    "Control.Worker": frozenset({"UNAVAILABLE"}),  # superseded by another case under the same name
    "Control.Gateway": frozenset({"UNAVAILABLE"}),
    "Transfer.Open": frozenset({"UNAVAILABLE"}),  # an epoch that is gone
    "Transfer.Fetch": frozenset({"UNAVAILABLE"}),
    "Transfer.Release": frozenset({"UNAVAILABLE"}),
    "Worker.PutMedia": frozenset(
        {"UNAVAILABLE", "DATA_LOSS"}
    ),  # an epoch that is gone; other bytes than their checksum says
}
DEEP: Mapping[str, float] = {
    "Inference.Generate": 8.0,
    "Control.Gateway": 6.0,
    "Control.Worker": 6.0,
    "Transfer.Open": 2.0,
    "Inference.UploadMedia": 2.0,
    "Worker.PutMedia": 4.0,
}
"""How much more often than the others these are called: behind them is most of the code."""
WHOLE = frozenset({"Inference.UploadMedia", "Worker.PutMedia"})
"""Streams of which half have sensible messages only: one strange message ends them at once, and what is behind their first would be seldom reached."""
HTTP_SHARE = 0.2  # of the cases, where there is an HTTP server
PROBE_EVERY = 3.0  # seconds between normal requests
PICTURES = 8  # normal requests with pictures of their own, besides those that come again
WIDTH = 16  # cases at a time
MAX_STREAM = 6  # messages a stream is given


@dataclass(frozen=True)
class Door:
    """A port under trial: where it is, what it serves, and what one has to show there."""

    address: str
    methods: tuple[Method, ...]
    metadata: Any = ()


@dataclass(frozen=True)
class Bad:
    """A case that must not end as it did. `payloads` are hex, cut to a sensible length."""

    case: int
    method: str
    status: str
    details: str
    kinds: tuple[Kind, ...]
    payloads: tuple[str, ...]


@dataclass
class Findings:
    """What a trial found; `problems` is empty for a good one."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[Bad] = field(default_factory=list)
    probes: int = 0
    failed_probes: list[str] = field(default_factory=list)
    slowest_probe: float = 0.0
    ended: list[str] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    held: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        return [
            *(f"case {b.case}: {b.method} -> {b.status}: {b.details[:200]}" for b in self.bad),
            *(f"normal request: {text}" for text in self.failed_probes),
            *([] if self.probes else ["no normal request was tried"]),
            *(f"process {name} ended" for name in self.ended),
            *(f"{x.process} {x.measure} grew by {x.growth:.1%}" for x in self.levels if x.grown),
            *(f"{owner} holds {what or 'nothing that it tells'}" for owner, what in self.held.items()),
        ]


async def doors(deployment: Deployment) -> tuple[list[Door], Facts]:
    """Every port of a deployment, and what its peers know of it."""
    access = deployment.access
    outside, inside = bearer_metadata(access.token), bearer_metadata(access.cluster_token or access.token)
    async with deployment.client() as client:
        model = await client.model_info()
    infos = tuple(one.info for one in (await deployment.cluster()).instances)
    workers = sorted({info.address for info in infos})
    return [
        Door(deployment.address, (*INFERENCE, *STANDARD), outside),
        Door(deployment.scheduler, (*CONTROL, *STANDARD), inside),
        *(Door(address, WORKER, inside) for address in workers),
    ], Facts(model.model, model.vocab_size, infos, model.media_placeholder)


class Fuzzer:
    """Makes cases against `doors` until it is told to stop."""

    def __init__(self, deployment: Deployment, targets: list[Door], facts: Facts, seed: int, findings: Findings):
        self._deployment = deployment
        self._targets = targets
        self._facts = facts
        self._seed = seed
        self._findings = findings
        # Strange HTTP is written to a plain socket: behind TLS all of it would be the same broken handshake.
        self._web = deployment.http if deployment.access.tls is None else None
        self._channels = {door.address: deployment.channel(door.address) for door in targets}
        self._next = 0

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        try:
            await asyncio.gather(*(self._work(until) for _ in range(WIDTH)))
        finally:
            for channel in self._channels.values():
                await channel.close()

    async def _work(self, until: float) -> None:
        while time.monotonic() < until:
            self._next += 1
            await self._case(self._next)

    async def _case(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        if self._web is not None and rng.random() < HTTP_SHARE:
            await self._http_case(number, self._web, rng)
            return
        door = rng.choice(self._targets)
        if rng.random() < 0.01:
            self._findings.statuses["(raw bytes)", LEFT] += 1
            await shout(door.address, noise(rng) * rng.choice([1, 100]))
            return
        methods = door.methods if rng.random() < 0.95 else EVERYTHING
        method = rng.choices(methods, [DEEP.get(method.shown, 1.0) for method in methods])[0]
        ending = rng.choice(list(Ending))
        source = Source(rng, self._facts.words, Conversation(self._facts, rng))
        count = rng.randint(0, MAX_STREAM) if method.descriptor.client_streaming else 1
        kind = Kind.GOOD if method.shown in WHOLE and rng.random() < 0.5 else None
        drawn = [source.payload(method.descriptor.input_type, kind) for _ in range(count)]
        payloads = [data for _, data in drawn]
        metadata = door.metadata if rng.random() < 0.95 else (("authorization", "Bearer fuzz"),)
        if ending is Ending.DROP:
            async with self._deployment.channel(door.address) as channel:
                status, details = await call(channel, method, payloads, ending, metadata, rng)
        else:
            status, details = await call(self._channels[door.address], method, payloads, ending, metadata, rng)
        self._findings.statuses[method.shown, status] += 1
        if not self._expected(method, status, metadata is not door.metadata and bool(door.metadata)):
            shown = tuple(data[:400].hex() for data in payloads)
            self._findings.bad.append(Bad(number, method.shown, status, details, tuple(k for k, _ in drawn), shown))

    async def _http_case(self, number: int, address: str, rng: random.Random) -> None:
        headers = [f"{key}: {value}" for key, value in bearer_metadata(self._deployment.access.token)]
        route, status, data = await http_calls.request(address, rng, self._facts.model, headers)
        self._findings.statuses[route, str(status)] += 1
        if status not in (LEFT, http_calls.NOTHING, *http_calls.EXPECTED):
            self._findings.bad.append(Bad(number, route, str(status), "", (), (data[:2000].hex(),)))

    @staticmethod
    def _expected(method: Method, status: str, wrong_token: bool) -> bool:
        if wrong_token and status == "UNAUTHENTICATED":
            return True
        return status in EXPECTED or status in ALSO.get(method.shown, ())


def normal(placeholder: str) -> list[Spec]:
    """Requests that must always be answered alike; with pictures if there is something to stand for one in a prompt."""
    arguments = {"token_ids": [1, 2, 3], "max_tokens": 8, "ignore_eos": True, "seed": 7}
    specs = [Spec("text", arguments)]
    if placeholder:
        rng = random.Random("normal")
        specs += [*media_kinds(rng, placeholder), *fresh_kinds(rng, PICTURES, placeholder)]
    return specs


async def probe(client: AsyncClient, specs: Sequence[Spec], findings: Findings) -> None:
    """Normal requests until cancelled, one kind after the other: each must give what it gave before."""
    uploads = Uploads()
    for spec in itertools.cycle(specs):
        outcome = await send(client, spec, uploads)
        if outcome.status is not Status.OK:
            findings.failed_probes.append(
                f"{spec.name}: {outcome.status.name if outcome.status else 'no end'}: {outcome.reason}"
            )
        elif not outcome.exact:
            findings.failed_probes.append(
                f"{spec.name}: {outcome.lost} tokens lost, {outcome.duplicated} twice, {outcome.wrong} wrong"
            )
        findings.probes += 1
        findings.slowest_probe = max(findings.slowest_probe, outcome.ended - outcome.began)
        await asyncio.sleep(PROBE_EVERY)


async def trial(deployment: Deployment, seconds: float, seed: int) -> Findings:
    """Fuzz for so long; then see what is left."""
    findings = Findings()
    targets, facts = await doors(deployment)
    before = deployment.processes()
    watch = Watch(lambda: deployment.processes() | deployment.decoders(), interval=min(1.0, seconds / 40))
    async with deployment.client() as client:
        specs = await learn(client, normal(facts.placeholder))
        tasks = [asyncio.create_task(watch.run()), asyncio.create_task(probe(client, specs, findings))]
        try:
            await Fuzzer(deployment, targets, facts, seed, findings).run(seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    findings.held = await deployment.wait_idle()
    after = deployment.processes()
    findings.ended = [f"{name} ({pid})" for name, pid in before.items() if after.get(name) != pid]
    findings.levels = watch.levels()
    return findings


def report(findings: Findings) -> str:
    """The table of methods and statuses, the table of processes, and every problem."""
    lines = []
    for method in sorted({method for method, _ in findings.statuses}):
        counts = [(status, n) for (of, status), n in findings.statuses.items() if of == method]
        shown = ", ".join(f"{status.lower()} {n}" for status, n in sorted(counts, key=lambda pair: -pair[1]))
        lines.append(f"{method:<38}{sum(n for _, n in counts):>7}  {shown}")
    lines += ["", table(findings.levels), ""]
    lines.append(
        f"{sum(findings.statuses.values())} cases, {findings.probes} normal requests (slowest {findings.slowest_probe:.2f} s), "
        f"{len(findings.problems)} problems"
    )
    return "\n".join([*lines, *(f"  {problem}" for problem in findings.problems)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--json", type=Path, help="write the bad cases, with their payloads in hex, to this file")
    add_trial_arguments(parser, topology="1E1P1D")
    add_address_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_outputs(args.log, args.json)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with opened(args, "--http-port=0", *(MODEL if sees(args.topology) else ())) as deployment:
        findings = await trial(deployment, args.seconds, args.seed)
    print(report(findings))
    if args.json is not None:
        args.json.write_text(json.dumps([vars(bad) for bad in findings.bad], indent=1))
    return 1 if findings.problems else 0

"""`triptych top`: a running cluster at a glance: instances, roles, queues, pages and rates, again every second; where media are
taken, what there is to encode, too.

What the scheduler knows comes from Control.GetCluster, what only workers know from their Inspect; rates are differences of two looks. An instance whose worker
does not answer is shown with what the scheduler knows of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from triptych.proto.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from triptych.runtime.core.errors import ConfigError, TriptychError
from triptych.runtime.wire.auth import bearer_metadata
from triptych.tools.control import ControlConnection, scheduler_error
from triptych.tools.settings import add_flags, resolve

TIMEOUT = 2.0  # seconds for an answer; a look that takes longer than this is no look
SCREEN, LEAVE, HOME = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"
BAR = 10  # characters
HEADER = (
    f"{'instance':<14}{'roles':<16}{'state':<10}{'beat':>6}{'run':>6}{'wait':>6}{'slots':>9}{'pages':>{BAR + 14}}{'staged':>8}"
    f"{'steps/s':>9}{'prefill/s':>11}{'in MB/s':>9}{'out MB/s':>9}{'preempt':>9}"
)
MEDIA_HEADER = f"{'media':<14}{'to encode':>11}{'patches/s':>11}{'a step':>9}{'embeddings':>{BAR + 14}}{'in MB/s':>9}{'out MB/s':>9}{'pixels':>8}"


@dataclass(frozen=True)
class Look:
    """A cluster at one moment. `inspected`: what workers told, by instance id."""

    at: float
    cluster: control_pb2.Cluster
    inspected: Mapping[str, worker_pb2.InstanceState]


class Cluster:
    """Connections to a scheduler and to the workers that it names."""

    def __init__(self, connection: ControlConnection):
        assert connection.scheduler is not None, "validated"
        self._open = connection.channel
        self._metadata = bearer_metadata(connection.token)
        self._address = connection.scheduler
        self._scheduler = self._open(self._address)
        self._workers: dict[str, grpc.Channel] = {}

    def look(self) -> Look:
        """Raises the typed error of a scheduler that does not answer."""
        stub = control_pb2_grpc.ControlStub(self._scheduler)
        try:
            cluster = stub.GetCluster(control_pb2.GetClusterRequest(), timeout=TIMEOUT, metadata=self._metadata)
        except grpc.RpcError as error:
            raise scheduler_error(error, self._address) from error
        return Look(time.monotonic(), cluster, self._inspect({entry.info.address for entry in cluster.instances}))

    def close(self) -> None:
        for channel in (self._scheduler, *self._workers.values()):
            channel.close()

    def _inspect(self, addresses: set[str]) -> dict[str, worker_pb2.InstanceState]:
        for gone in self._workers.keys() - addresses:
            self._workers.pop(gone).close()
        calls = []
        for address in sorted(addresses):
            channel = self._workers.get(address) or self._workers.setdefault(address, self._open(address))
            stub = worker_pb2_grpc.WorkerStub(channel)
            calls.append(stub.Inspect.future(worker_pb2.InspectRequest(), timeout=TIMEOUT, metadata=self._metadata))
        found: dict[str, worker_pb2.InstanceState] = {}
        for call in calls:
            if call.exception() is None:
                found |= {state.info.ref.id: state for state in call.result().instances}
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--json", action="store_true", help="print one JSON object a look instead of a screen")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between looks (default 1)")
    add_flags(parser, ControlConnection)


def run(args: argparse.Namespace) -> int:
    connection = resolve(ControlConnection, args)
    if not args.interval > 0:
        raise ConfigError(f"--interval is {args.interval}; expected seconds")
    assert connection.scheduler is not None, "validated"
    cluster = Cluster(connection)
    try:
        before = cluster.look()
        with _screen(enabled=not (args.once or args.json)) as start:
            while True:
                time.sleep(args.interval)
                try:
                    now = cluster.look()
                except TriptychError as error:
                    if args.once:
                        raise
                    print(f"{start}triptych {connection.scheduler}: {error.message}", file=sys.stderr, flush=True)
                    continue  # a scheduler that is started again comes back
                told = json.dumps(as_dict(before, now)) if args.json else frame(connection.scheduler, before, now)
                print(f"{start}{told}", flush=True)
                if args.once:
                    return 0
                before = now
    finally:
        cluster.close()


@contextmanager
def _screen(*, enabled: bool) -> Iterator[str]:
    """A screen of its own where output is a terminal, and what goes before each frame."""
    if not (enabled and sys.stdout.isatty()):
        yield ""
        return
    print(SCREEN, end="", flush=True)
    try:
        yield HOME
    finally:
        print(LEAVE, end="", flush=True)


# ---- what is shown ------------------------------------------------------------------------------------------------------------------


def as_dict(before: Look, now: Look) -> dict[str, Any]:
    """A look as plain data; rates are per second since the look before it."""
    counters = dict(now.cluster.counters)
    return {
        "requests": {"queued": now.cluster.queued, "active": now.cluster.active},
        "counters": counters,
        "rates": {
            name: _rate(before.cluster.counters.get(name, 0), value, before, now)
            for name, value in counters.items()
            if name in ("submitted", "completed", "refused", "interrupted") or name.startswith("failed_")
        },
        "instances": [_instance(entry, before, now) for entry in now.cluster.instances],
    }


def _instance(entry: control_pb2.ClusterInstance, before: Look, now: Look) -> dict[str, Any]:
    info, load, id = entry.info, entry.load, entry.info.ref.id
    state, earlier = now.inspected.get(id), before.inspected.get(id)
    facts: dict[str, Any] = {
        "id": id,
        "epoch": info.ref.epoch,
        "worker": info.worker,
        "address": info.address,
        "roles": list(info.roles),
        "tp": info.tp,
        "state": entry.state,
        "heartbeat_age": entry.heartbeat_age,
        "tasks": entry.tasks,
        "running": load.running,
        "waiting": load.waiting,
        "staged": load.staged,
        "free_slots": load.free_slots,
        "num_slots": info.capacity.max_num_seqs,
        "free_pages": load.free_pages,
        "num_pages": info.capacity.num_pages,
        "encoding": load.encoding,
        "free_media_pages": load.free_media_pages,
        "media_pages": info.capacity.media_pages,
        "max_patches": info.capacity.max_patches,
        "answers": state is not None,
    }
    if state is not None:
        facts |= {"resources": dict(state.resources), "counters": dict(state.counters)}
    if state is not None and earlier is not None and earlier.info.ref.epoch == info.ref.epoch:
        facts["rates"] = {
            name: _rate(earlier.counters.get(name, 0), value, before, now) for name, value in state.counters.items()
        }
    return facts


def _rate(earlier: float, later: float, before: Look, now: Look) -> float:
    """Per second; 0 where a counter began again."""
    return max(0.0, later - earlier) / max(now.at - before.at, 1e-9)


def frame(scheduler: str, before: Look, now: Look) -> str:
    """A look as a page of text."""
    shown = as_dict(before, now)
    counters, rates = shown["counters"], shown["rates"]
    failed = {
        name.removeprefix("failed_").upper(): n for name, n in counters.items() if name.startswith("failed_") and n
    }
    requests, ended = shown["requests"], ", ".join(f"{n} failed {status}" for status, n in sorted(failed.items()))
    rate = {name: f"{rates.get(name, 0.0):.1f}/s" for name in ("submitted", "completed")}
    total = {name: counters.get(name, 0) for name in ("submitted", "completed", "refused", "resumed")}
    lines = [
        f"triptych {scheduler}   {time.strftime('%H:%M:%S')}",
        f"requests  {requests['active']} active, {requests['queued']} queued   {rate['submitted']} in, {rate['completed']} completed",
        f"so far    {', '.join(f'{n} {name}' for name, n in total.items())}, {ended or '0 failed'}",
        "",
        HEADER,
    ]
    lines += [_row(one) for one in sorted(shown["instances"], key=lambda one: (one["roles"], one["id"]))]
    if media := [one for one in shown["instances"] if one["media_pages"]]:
        lines += [
            "",
            MEDIA_HEADER,
            *(_media_row(one) for one in sorted(media, key=lambda one: (one["roles"], one["id"]))),
        ]
    roles = {role for one in shown["instances"] for role in one["roles"]}
    if missing := sorted({"prefill", "decode"} - roles, reverse=True):
        lines += ["", f"cannot serve now: no instance for {' and '.join(missing)}"]
    return "\n".join(lines)


def _media_row(one: Mapping[str, Any]) -> str:
    """What an instance has to do with media: patches that wait, patches a second and a step, pages of embeddings, pixels."""
    pages = _bar(one["media_pages"] - one["free_media_pages"], one["media_pages"])
    cells = f"{one['id']:<14}{one['encoding']:>11}"
    rates = one.get("rates")
    if rates is None:
        return f"{cells}{'':>20}{pages:>{BAR + 14}}"
    patches, steps = rates.get("encoded_patches", 0.0), rates.get("steps", 0.0)
    moved_in, moved_out = rates.get("media_bytes_received", 0.0) / 1e6, rates.get("media_bytes_offered", 0.0) / 1e6
    return (
        f"{cells}{patches:>11.1f}{patches / steps if steps else 0.0:>9.1f}{pages:>{BAR + 14}}{moved_in:>9.2f}{moved_out:>9.2f}"
        f"{one['resources'].get('shelf_items', 0):>8}"
    )


def _bar(used: int, total: int) -> str:
    filled = round(BAR * used / total) if total else 0
    return f"{'#' * filled}{'.' * (BAR - filled)} {used}/{total}"


def _row(one: Mapping[str, Any]) -> str:
    pages = _bar(one["num_pages"] - one["free_pages"], one["num_pages"])
    slots = f"{one['num_slots'] - one['free_slots']}/{one['num_slots']}"
    cells = (
        f"{one['id']:<14}{'+'.join(sorted(one['roles'])):<16}{one['state'] or '?':<10}{one['heartbeat_age']:>5.1f}s"
        f"{one['running']:>6}{one['waiting']:>6}{slots:>9}{pages:>{BAR + 14}}{one['staged']:>8}"
    )
    rates = one.get("rates")
    if rates is None:
        return cells + ("   (no rates yet)" if one["answers"] else "   (its worker does not answer)")
    moved_in, moved_out = rates.get("kv_bytes_received", 0.0) / 1e6, rates.get("kv_bytes_offered", 0.0) / 1e6
    return cells + (
        f"{rates.get('steps', 0.0):>9.1f}{rates.get('prefill_tokens', 0.0):>11.1f}{moved_in:>9.2f}{moved_out:>9.2f}"
        f"{one['counters'].get('preemptions', 0):>9}"
    )

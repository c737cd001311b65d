"""`triptych faults`: run random fault schedules on the virtual cluster, and show what became of the requests.

    triptych faults --schedules 20000 --seed 0 --jobs 2
    triptych faults --replay 4711

A request counts in the row of every fault of its schedule, so rows overlap; the last row counts each request once. A schedule fails if a request
hung, was lost, duplicated or wrong, failed without a reason that the schedule gave, or if anything was still held in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TextIO

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.simulation.faults import Kind
from triptych.runtime.simulation.replay import replay
from triptych.runtime.simulation.run import Outcome, run_many
from triptych.tools.reports import check_outputs

COLUMNS = ("schedules", "admitted", "completed", "failed", "hung", "lost", "duplicated", "wrong", "leaked")
SHOWN = 20  # failing seeds that are printed; the JSON file has them all
PROGRESS = 2.0  # seconds between lines of progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schedules", type=int, default=1000, metavar="N", help="how many schedules to run (1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one; the others follow it (0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes to use (one for each core)"
    )
    parser.add_argument("--only", default="", metavar="KIND,...", help=f"only faults of these kinds: {', '.join(Kind)}")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="run one schedule again and print what happens in it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table and every failing seed to FILE")


def run(args: argparse.Namespace) -> int:
    if args.schedules < 1 or args.jobs < 1:
        raise ConfigError(f"--schedules is {args.schedules} and --jobs {args.jobs}; expected at least 1 each")
    check_outputs(args.json)
    kinds = _kinds(args.only)
    if args.replay is not None:
        return 0 if replay(args.replay, sys.stdout, kinds).passed else 1
    tally = Tally()
    began = shown = time.monotonic()
    for outcome in run_many(args.schedules, args.seed, min(args.jobs, os.cpu_count() or 1, args.schedules), kinds):
        tally.add(outcome)
        if not outcome.passed:
            print(f"seed {outcome.seed} fails: {outcome.wrong[0].splitlines()[0]}", file=sys.stderr, flush=True)
        if time.monotonic() > shown + PROGRESS:
            shown = time.monotonic()
            print(
                f"{tally.schedules} of {args.schedules} schedules, {len(tally.failing)} failing, {shown - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    seconds = time.monotonic() - began
    tally.print(sys.stdout, seconds)
    if args.json is not None:
        args.json.write_text(json.dumps(tally.as_dict(seconds), indent=1) + "\n")
    return 1 if tally.failing else 0


def _kinds(names: str) -> tuple[Kind, ...]:
    """The kinds of faults that `names` lists; all of them if it lists none."""
    unknown = [name for name in names.split(",") if name and name not in tuple(Kind)]
    if unknown:
        raise ConfigError(f"--only names {', '.join(unknown)}; expected some of {', '.join(Kind)}")
    return tuple(Kind(name) for name in names.split(",") if name) or tuple(Kind)


class Tally:
    """Counts by fault and role."""

    def __init__(self) -> None:
        self.schedules = 0
        self.events = 0
        self.failing: dict[int, tuple[str, ...]] = {}
        self.reasons: Counter[str] = Counter()
        self._rows: dict[tuple[str, str], Counter[str]] = {}
        self._all: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.schedules += 1
        self.events += outcome.events
        counts = Counter[str](schedules=1, leaked=outcome.leaked)
        for verdict in outcome.verdicts:
            kind = verdict.outcome.split(":")[0]
            counts.update(["admitted", {"missing": "lost"}.get(kind, kind)])
            if kind == "failed":
                self.reasons[verdict.outcome] += 1
        for row in set(outcome.struck) or {("none", "")}:
            self._rows.setdefault(row, Counter()).update(counts)
        self._all.update(counts)
        if not outcome.passed:
            self.failing[outcome.seed] = outcome.wrong

    def print(self, out: TextIO, seconds: float) -> None:
        lines = [("fault", "struck", *COLUMNS)]
        lines += [(*row, *(str(self._rows[row][name]) for name in COLUMNS)) for row in sorted(self._rows)]
        lines.append(("all", "", *(str(self._all[name]) for name in COLUMNS)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        for line in lines:
            cells = [
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ]
            print("  ".join(cells).rstrip(), file=out)
        print(
            f"\nfailed with a reason: {', '.join(f'{n} {r[8:]}' for r, n in self.reasons.most_common()) or 'none'}",
            file=out,
        )
        print(
            f"{self.schedules} schedules, {self.events} events in {seconds:.1f} s; {len(self.failing)} failing",
            file=out,
        )
        for seed, wrong in list(self.failing.items())[:SHOWN]:
            print(f"  seed {seed}: {wrong[0].splitlines()[0]}", file=out)
        if self.failing:
            print(f"replay one with: triptych faults --replay {next(iter(self.failing))}", file=out)

    def as_dict(self, seconds: float) -> dict[str, object]:
        return {
            "schedules": self.schedules,
            "events": self.events,
            "seconds": seconds,
            "all": {name: self._all[name] for name in COLUMNS},
            "rows": [
                {"fault": fault, "struck": struck, **{name: counts[name] for name in COLUMNS}}
                for (fault, struck), counts in sorted(self._rows.items())
            ],
            "reasons": dict(self.reasons),
            "failing": {str(seed): list(wrong) for seed, wrong in self.failing.items()},
        }

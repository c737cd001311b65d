"""One run of `triptych bench-overlap`: prompts one behind the other through a prefill and a decode instance of this process, every step and every
offer written down.

The link is emulated: each offer costs a hand-shake and its own copy, one after the other (transports/handshake.py). Everything else is what
serves: scheduler, device loops, leases, checksums.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.runtime.cluster.llm import LLM
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.instance.plan import Pool, StepPlan
from triptych.runtime.transfer.transports.base import Transport
from triptych.runtime.transfer.transports.handshake import Fetched, HandshakeTransport
from triptych.tools.bench.intervals import Interval, Request

PREFILL = "prefill-0"
PAGE_SIZE = 16
OUTPUT = 2  # tokens: the second one needs the KV


@dataclass(frozen=True)
class Workload:
    """What is sent, the same for every group size: `requests` prompts of `chunks` steps of `chunk_tokens` tokens."""

    model: str
    cache: Path
    transport: TransportKind
    requests: int
    chunks: int
    chunk_tokens: int
    seed: int = 0

    @property
    def prompt_tokens(self) -> int:
        return self.chunks * self.chunk_tokens

    def prompts(self, count: int, salt: object) -> list[list[int]]:
        """Different ones: nothing is found in a prefix cache."""
        source = random.Random(f"{self.seed}/{salt}")
        return [[source.randrange(1, 250) for _ in range(self.prompt_tokens)] for _ in range(count)]


@dataclass
class Record:
    """What was seen. Filled on device loops and event loops; read when nothing runs."""

    handshake: float = 0.0
    steps: list[tuple[StepPlan, Interval]] = field(default_factory=list)
    fetched: list[Fetched] = field(default_factory=list)

    def on_step(self, instance: str, plan: StepPlan, dispatched: float, done: float) -> None:
        if instance == PREFILL and plan.rows:
            before = self.steps[-1][1][1] if self.steps else dispatched
            self.steps.append((plan, (max(dispatched, before), done)))

    def link(self, inner: Transport) -> Transport:
        return HandshakeTransport(inner, lambda: self.handshake, self.fetched.append)

    def clear(self) -> None:
        self.steps.clear()
        self.fetched.clear()

    def requests(self) -> list[Request]:
        """By the keys that their KV was staged under."""
        compute: dict[int, list[Interval]] = defaultdict(list)
        offers: dict[int, list[Interval]] = defaultdict(list)
        for plan, interval in self.steps:
            for key in {export.key for export in plan.exports if export.pool is Pool.KV}:
                compute[key].append(interval)
        for one in self.fetched:
            offers[one.key].append((one.begin, one.end))
        return [Request(tuple(steps), tuple(offers[key])) for key, steps in compute.items()]


class Runner:
    """A running pair of instances with one size of layer groups."""

    def __init__(self, llm: LLM, record: Record, work: Workload):
        self._llm, self._record, self._work = llm, record, work

    def run(self, handshake: float, salt: object) -> list[Request]:
        """All requests at once; their steps and offers. What the tokens are, `tokens` says."""
        self._record.handshake = handshake
        self._record.clear()
        results = self._llm.generate(
            self._work.prompts(self._work.requests, salt), max_tokens=OUTPUT, temperature=0, ignore_eos=True
        )
        self.tokens = [result.samples[0].token_ids for result in results]
        return self._record.requests()

    def step_seconds(self) -> float:
        """Median step of the last run."""
        return statistics.median(end - begin for _, (begin, end) in self._record.steps)

    def offer(self) -> tuple[float, float]:
        """(bytes, seconds) of the median offer of the last run."""
        fetched = self._record.fetched
        return (
            statistics.median(one.nbytes for one in fetched),
            statistics.median(one.end - one.begin for one in fetched),
        )


@contextmanager
def running(work: Workload, layers: int | None) -> Iterator[Runner]:
    """Instances that offer KV in groups of `layers` layers (None: all), warmed up by one request."""
    record = Record()
    tokens = work.prompt_tokens + OUTPUT + 1
    options: dict[str, Any] = {
        "max_model_len": tokens,
        "chunk_tokens": work.chunk_tokens,
        "page_size": PAGE_SIZE,
        "export_pages": work.chunk_tokens // PAGE_SIZE,  # a step's pages are one offer a group
        "num_pages": 1 + (work.requests + 1) * -(-tokens // PAGE_SIZE),
        "max_num_seqs": work.requests,
        "max_prefill_rows": 1,
        "prefix_cache": False,
        "kv_layer_groups": layers,
        "transports": (work.transport,),
        "link": record.link,
        "on_step": record.on_step,
    }
    with LLM(work.model, topology="1P1D", cache=work.cache, **options) as llm:
        llm.generate(work.prompts(1, "warm"), max_tokens=OUTPUT, temperature=0, ignore_eos=True)
        yield Runner(llm, record, work)

"""The predicting half of `triptych fidelity`: delays and host times fitted to an idle deployment, and the simulator run
on the load that was measured.

Devices that are cores of one machine share its memory, and a worker's steps take longer while its neighbour computes:
a table of steps that was measured beside a busy neighbour is mixed with the one measured alone, in the proportion in
which the neighbour is busy (`contended`).

What is fitted, each to the median of a few requests on an otherwise idle deployment: the loop's own time in a decode
step with one row and with several (HostTime), in a prefill step of an instance that only prefills, the way of a request
in and of a token out (`admit`), and the latency and bandwidth of a pull. Nothing is fitted to the load that is
predicted.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from triptych.runtime.core.topology import parse
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.scheduler.scheduler import Scheduler
from triptych.runtime.simulation.steptime import StepShape
from triptych.runtime.simulation.steptime_table import HostTime, Measured, PullTime, StepTable
from triptych.runtime.simulation.study_cluster import StudyCluster
from triptych.runtime.simulation.study_fleet import Delays
from triptych.runtime.simulation.study_layout import Device, Limits, layout
from triptych.runtime.simulation.workload import Arrival, Shape
from triptych.runtime.simulation.workload_tokens import TokenSource
from triptych.tools.fidelity_live import Probe

Sent = Sequence[tuple[float, int, int]]
"""(arrival, prompt tokens, output tokens) of each request, in order of arrival."""
NOTHING = Delays(0.0, 0.0, 0.0, 0.0, 0.0)
FREE = PullTime(0.0, 1e15)
_A_LITTLE = 1e-3
BANDWIDTHS = tuple(10.0 ** (exponent / 8) for exponent in range(96, 47, -1))  # 1 TB/s down to 1 MB/s


@dataclass(frozen=True)
class Model:
    """Everything that the prediction rests on."""

    topology: str
    prefill: StepTable
    decode: StepTable
    delays: Delays = NOTHING
    pull: PullTime = FREE


@dataclass(frozen=True)
class Predicted:
    """Columns over the requests, in order of arrival; `busy` is the share of the time in which each kind of instance computes."""

    ttft: np.ndarray
    tpot: np.ndarray
    after: np.ndarray
    seconds: float
    busy: Mapping[str, float]


def predict(model: Model, sent: Sent) -> Predicted:
    """What the simulator says of these requests."""
    kinds = layout(parse(model.topology), _device(model, model.prefill), _device(model, model.decode))
    delays = replace(model.delays, pull=model.pull.latency)
    cluster = StudyCluster(kinds, Scheduler(SchedulerConfig(max_queued=1 << 20)), delays, TokenSource())
    cluster.run(_arrivals(sent))
    if cluster.requests.failures:
        raise ValueError(f"simulated requests failed: {dict(cluster.requests.failures)}")
    at = cluster.requests.column("at")
    order = np.lexsort((cluster.requests.column("prompt"), at))
    ttft, tpot, e2e = (cluster.requests.column(name)[order] for name in ("ttft", "tpot", "e2e"))
    seconds = float((at + cluster.requests.column("e2e")).max() - at.min())
    busy = {
        kind: statistics.fmean(instance.busy_seconds for instance in instances) / seconds
        for kind, instances in cluster.kinds.items()
    }
    return Predicted(ttft, tpot, e2e - ttft, seconds, busy)


def contended(model: Model, beside: tuple[StepTable, StepTable], sent: Sent) -> Model:
    """`model` with the step times of devices that share memory: `beside` are the tables of prefill and decode steps, each
    measured while the other role computed without a pause. How busy the other one is under `sent` is predicted, twice:
    with slower steps it is busier."""
    slower = model
    for _ in range(2):
        busy = predict(slower, sent).busy
        prefill = mixed(model.prefill, beside[0], busy["decode"])
        slower = replace(model, prefill=prefill, decode=mixed(model.decode, beside[1], busy["prefill"]))
    return slower


def mixed(alone: StepTable, beside: StepTable, share: float) -> StepTable:
    """The table of a device whose neighbour computes for `share` of the time."""

    def between(one: Measured, other: Measured) -> Measured:
        return replace(one, median=one.median + min(1.0, share) * (other.median - one.median))

    programs = tuple(
        replace(one, low=between(one.low, other.low), high=between(one.high, other.high))
        for one, other in zip(alone.programs, beside.programs, strict=True)
    )
    return replace(alone, programs=programs)


def _device(model: Model, table: StepTable) -> Device:
    limits = table.limits
    own = Limits(
        limits.page_size, limits.max_num_seqs, limits.max_model_len, limits.chunk_tokens, limits.max_prefill_rows,
        limits.num_pages, True,
    )  # fmt: skip
    return Device(table, own, limits.num_pages, model.pull.bandwidth, limits.kv_bytes_per_token)


def _arrivals(sent: Sent) -> Iterator[Arrival]:
    for serial, (at, prompt, output) in enumerate(sent):
        yield Arrival(serial, at, Shape(prompt, output))


def fit(
    topology: str, prefill: StepTable, decode: StepTable, alone: list[list[Probe]], together: list[list[Probe]]
) -> Model:
    """`alone`: groups of one request; `together`: groups of several sent at once. Both on an idle deployment."""
    table = _with_host(decode, alone, together)
    both = parse(topology).disaggregated is False
    model = Model(topology, table if both else prefill, table)
    singles = [group[0] for group in alone]
    apart = 1.0 + 3.0 * max(p.ttft + p.after for p in singles)  # nothing of one is left when the next one comes
    sent = [(number * apart, p.prompt, p.output) for number, p in enumerate(singles)]
    if not both:
        model = _with_prefill_host(model, together)
    first = predict(model, sent)
    admit = float(np.median(np.array([p.ttft for p in singles]) - first.ttft))
    model = replace(model, delays=replace(NOTHING, admit=max(0.0, admit)))
    return model if both else replace(model, pull=_pull(model, singles, sent))


def _with_prefill_host(model: Model, together: list[list[Probe]]) -> Model:
    """The prefill loop's own time a step, from how far apart the first tokens of prompts are that were sent at once: while one is computed, the KV of the one
    before is read by decode, which costs the same core."""
    apart = 1.0 + 3.0 * max(p.ttft + p.after for group in together for p in group)
    sent = [(number * apart, p.prompt, p.output) for number, group in enumerate(together) for p in group]
    ends = np.cumsum([len(group) for group in together])[:-1]

    def spreads(host: float) -> np.ndarray:
        slower = replace(model, prefill=replace(model.prefill, host=HostTime(host, 0.0, 0.0)))
        return np.array([np.ptp(ttft) for ttft in np.split(predict(slower, sent).ttft, ends)])

    bare = spreads(0.0)
    steps = (spreads(_A_LITTLE) - bare) / _A_LITTLE  # from the first prompt's end to the last one's
    live = np.array([np.ptp([p.ttft for p in group]) for group in together])
    several = steps > 0.5
    if not several.any():
        return model
    more = float(np.median(((live - bare) / np.where(several, steps, 1.0))[several]))
    return replace(model, prefill=replace(model.prefill, host=HostTime(max(0.0, more), 0.0, 0.0)))


def _with_host(table: StepTable, alone: list[list[Probe]], together: list[list[Probe]]) -> StepTable:
    """The decode loop's own time a step and a row, from the gaps between tokens of one request and of several."""
    bare = replace(table, host=HostTime())
    rows = min(len(together[0]), table.limits.max_num_seqs)
    extra = {1: _extra(bare, alone, 1), rows: _extra(bare, together, rows)}
    row = max(0.0, (extra[rows] - extra[1]) / (rows - 1)) if rows > 1 else 0.0
    return replace(table, host=HostTime(max(0.0, extra[1] - row), row, 0.0))


def _extra(bare: StepTable, groups: list[list[Probe]], rows: int) -> float:
    """Median of what steps took beyond the table, in the second half of each request: then all of a group decode and
    nobody prefills."""
    over: list[float] = []
    for group in groups:
        for p in group:
            for place in range(len(p.gaps) // 2, len(p.gaps)):
                context = p.prompt + place + 1
                over.append(p.gaps[place] - bare.seconds(StepShape(rows, rows * context, longest=context, draws=rows)))
    return statistics.median(over)


def _pull(model: Model, singles: list[Probe], sent: Sent) -> PullTime:
    """Latency and bandwidth from what the second token waits for. Most bytes move while the prompt is still computed
    and cost nothing, so the bandwidth is the one of BANDWIDTHS with which one latency explains all prompts best, long
    and short."""
    live = np.array([p.after for p in singles])
    best = (np.inf, FREE)
    for bandwidth in BANDWIDTHS:
        extra = live - predict(replace(model, pull=PullTime(0.0, bandwidth)), sent).after
        latency = max(0.0, float(np.median(extra)))
        error = float(np.abs(extra - latency).mean())
        if error < best[0] * 0.98:  # a slower link must explain clearly more than a faster one, which comes first
            best = (error, PullTime(latency, bandwidth))
    return best[1]


def capacity(model: Model, lengths: Sequence[tuple[int, int]]) -> float:
    """Requests a second that the deployment completes when all of these come at once."""
    everything = predict(model, [(0.0, prompt, output) for prompt, output in lengths])
    return len(lengths) / everything.seconds

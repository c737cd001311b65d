"""Clusters that serve the toy model inside the test process, and what a request's outcome is compared by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.models.hub.resolve import resolve_model
from triptych.models.hub.text import open_text
from triptych.runtime.client import Result
from triptych.runtime.cluster.front import FrontConfig, served_model
from triptych.runtime.cluster.local import LocalCluster
from triptych.runtime.core.instance import Role, TransportKind
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.instance.speculation import Speculation
from triptych.runtime.scheduler.config import SchedulerConfig
from triptych.runtime.worker.config import InstancePlan, WorkerConfig

MODEL = "dummy:toy"
PREFILL, DECODE = frozenset({Role.PREFILL}), frozenset({Role.DECODE})
# Nobody dies in these clusters, whose threads share one interpreter and a busy machine.
PATIENT = SchedulerConfig(heartbeat_timeout=60.0, encode_answer=60.0)
NO_CACHE = Path("/nonexistent")  # a preset is never fetched


@dataclass(frozen=True)
class ToySetup:
    """One deployment of the toy model. `tp` is (prefill, decode); for topologies PD and (P-D) both are the same.

    `processes` "one": one worker holds both instances; "two": one worker each (here still one Python process, but separate gRPC
    servers, transports and devices).
    """

    topology: str = "1P1D"
    processes: str = "one"
    transport: str = "local"
    tp: tuple[int, int] = (1, 1)
    chunk_tokens: int = 32
    num_pages: int = 129
    max_num_seqs: int = 8
    max_model_len: int = 160
    prefix_cache: bool = True
    kv_layer_groups: int | None = None
    kv_dtype: str = "float32"
    speculation: Speculation | None = None
    scheduler: SchedulerConfig = PATIENT

    def cluster(self, token: str | None = None) -> LocalCluster:
        resolved = resolve_model(MODEL, NO_CACHE)
        model = served_model(resolved, open_text(resolved), name="toy", max_model_len=self.max_model_len)
        front = FrontConfig(
            host="127.0.0.1",
            port=0,
            model=model,
            facts=ServerFacts("test", self.topology),
            scheduler=self.scheduler,
            gateway=GatewayConfig("set by the front"),
            token=token,
        )
        return LocalCluster(front, [replace(worker, token=token) for worker in self.workers()])

    def workers(self) -> list[WorkerConfig]:
        prefill, decode = self.tp
        if self.topology in ("PD", "(P-D)"):
            turns = self.topology == "(P-D)"
            shared = InstancePlan("pd-0", PREFILL | DECODE, prefill, taking_turns=turns)
            groups: Sequence[tuple[InstancePlan, ...]] = [(shared,)]
        else:
            plans = (InstancePlan("prefill-0", PREFILL, prefill), InstancePlan("decode-0", DECODE, decode))
            groups = [plans] if self.processes == "one" else [(plan,) for plan in plans]
        return [
            WorkerConfig(
                name=f"worker-{index}",
                scheduler="set by the cluster",
                instances=group,
                model=MODEL,
                cache=NO_CACHE,
                served_model_name="toy",
                num_pages=self.num_pages,
                max_model_len=self.max_model_len,
                chunk_tokens=self.chunk_tokens,
                max_num_seqs=self.max_num_seqs,
                prefix_cache=self.prefix_cache,
                kv_layer_groups=self.kv_layer_groups,
                kv_dtype=self.kv_dtype,
                speculation=self.speculation,
                transports=(TransportKind(self.transport),),
            )
            for index, group in enumerate(groups)
        ]


def tokens_of(result: Result) -> list[list[int]]:
    """Token ids of every sample."""
    return [sample.token_ids for sample in result.samples]


def logprobs_of(result: Result) -> list[float]:
    """All log-probabilities of a result in order: sampled, alternatives, prompt."""
    values: list[float] = []
    for sample in result.samples:
        for token in sample.tokens:
            values.extend(x for x in (token.logprob, *(logprob for _, logprob, _ in token.top)) if x is not None)
    for token in result.prompt_logprobs:
        values.extend(x for x in (token.logprob, *(logprob for _, logprob, _ in token.top)) if x is not None)
    return values


def shape_of(result: Result) -> dict[str, Any]:
    """Everything about a result that must be the same wherever it was computed, except floating-point numbers."""
    assert result.usage is not None
    return {
        "tokens": tokens_of(result),
        "text": [sample.text for sample in result.samples],
        "finish": [(sample.finish_reason, sample.matched) for sample in result.samples],
        "usage": (result.usage.prompt_tokens, result.usage.completion_tokens),
        "top": [[id for id, _, _ in token.top] for sample in result.samples for token in sample.tokens],
    }

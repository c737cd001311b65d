"""Many requests at once, as for offline work: all are submitted, and the time runs to the last token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.models.kernels.names import AUTO_KERNEL
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.composer import PromptsFirst
from triptych.runtime.instance.plan import StepPlan
from triptych.tools.bench.engine.figures import Throughput
from triptych.tools.bench.engine.loop import HostSeconds
from triptych.tools.bench.engine.rig import Rig, loop_over, model_len, random_prompt, request

PREFILL_ROWS = 4  # prompts of one step, as a worker has them
WARM_UP = 2  # requests before
PAGE = 16  # tokens a KV page of an LLM


@dataclass(frozen=True)
class Load:
    """`requests` prompts of `input_tokens`, each to be continued by `output_tokens`."""

    requests: int
    input_tokens: int
    output_tokens: int

    @staticmethod
    def parse(text: str, flag: str) -> Load:
        """From "256x512x128". Raises ConfigError."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ConfigError(f"{flag} is {text!r}; expected REQUESTSxINPUTxOUTPUT, such as 256x512x128")
        return Load(*map(int, parts))

    @property
    def length(self) -> int:
        """Tokens of one sequence at its end."""
        return self.input_tokens + self.output_tokens


def measure_batch(rig: Rig, name: str, load: Load, *, sequences: int, chunk: int) -> Throughput:
    """Through an instance core and an engine with all programs that such an instance has. `sequences` at once, `chunk` prompt tokens a step."""
    at_once = min(sequences, load.requests)
    config = rig.config(
        sequences=at_once,
        longest=load.length,
        chunk=chunk,
        tokens=at_once * rig.pages(load.length) * rig.page_size,
        prefill_rows=PREFILL_ROWS,
    )
    engine, _ = rig.engine(config)
    prompts = [random_prompt(rig.loaded.config.vocab_size, load.input_tokens, seed) for seed in range(load.requests)]
    rig.tell(f"{name}: {load.requests} requests of {load.input_tokens} in and {load.output_tokens} out")
    _run(engine, prompts[:WARM_UP], load.output_tokens)
    seconds, plans, host = _run(engine, prompts, load.output_tokens)
    works = tuple(rig.work.of(plan) for plan in plans if plan.rows)
    return Throughput(name, load.requests, load.input_tokens, load.output_tokens, seconds, len(plans), works, host)


def measure_through_llm(
    name: str,
    load: Load,
    model: str,
    cache: Path,
    *,
    vocab: int,
    sequences: int,
    chunk: int,
    tp: int,
    dtype: str,
    compile_threads: int,
    attention: str = AUTO_KERNEL,
) -> Throughput:
    """The same load through `LLM`: scheduler, gateway and worker in this process, gRPC between them. Loads the model itself."""
    from triptych.runtime.cluster.llm import LLM

    prompts = [random_prompt(vocab, load.input_tokens, seed) for seed in range(load.requests)]
    at_once = min(sequences, load.requests)
    longest = model_len(load.length)
    llm = LLM(
        model, topology="PD", tp=tp, cache=cache, dtype=dtype, max_model_len=longest, max_num_seqs=at_once, chunk_tokens=chunk,
        num_pages=1 + max(at_once * (1 + -(-load.length // PAGE)), -(-longest // PAGE)), max_waiting=load.requests, prefix_cache=False, compile_threads=compile_threads, page_size=PAGE, attention=attention,
    )  # fmt: skip
    sampling = {"max_tokens": load.output_tokens, "temperature": 0.0, "ignore_eos": True}
    with llm:
        llm.generate(prompts[:WARM_UP], **sampling)
        began = time.perf_counter()
        results = llm.generate(prompts, **sampling)
        seconds = time.perf_counter() - began
    assert len(results) == load.requests
    return Throughput(name, load.requests, load.input_tokens, load.output_tokens, seconds, 0, through="LLM")


def _run(
    engine: Engine, prompts: Sequence[tuple[int, ...]], output_tokens: int
) -> tuple[float, list[StepPlan], HostSeconds]:
    """(seconds, plans, the host's seconds in all)."""
    loop = loop_over(engine, waiting=len(prompts), composer=PromptsFirst())  # as `LLM` has it
    plans: list[StepPlan] = []
    began = time.perf_counter()
    for number, prompt in enumerate(prompts):
        loop.submit(request(number, prompt, output_tokens))
    while (step := loop.step()) is not None:
        plans.append(step.plan)
    seconds = time.perf_counter() - began
    assert loop.finished == len(prompts) and loop.emitted == len(prompts) * output_tokens, (
        "a request did not end as asked"
    )
    return seconds, plans, loop.host

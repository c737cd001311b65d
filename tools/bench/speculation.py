"""`triptych bench-speculation`: what guessing tokens saves on this machine, on text that repeats and on text that does not.

One engine and one instance on it, without processes and sockets around them: each task is decoded alone without guesses, then with them, greedily. Tokens must be the
same; in bfloat16 the first difference is printed instead, because steps of other sizes round otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.core.tasks import StartLocal
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.messages import Command, DeviceReady, Emit, StepDone
from triptych.runtime.instance.plan import StepPlan
from triptych.runtime.instance.speculation import Speculation
from triptych.tools.config import ServeConfig
from triptych.tools.reports import check_outputs

if TYPE_CHECKING:
    from triptych.models.hub.text import ModelText
    from triptych.runtime.engine.engine import Engine

DEFAULT_CACHE = ServeConfig().cache_dir

_NOTE = (
    "The harbour opens at six. Boats that carry fish use the north gate, and boats that carry people use the south gate. Every boat shows its number "
    "at the gate. A boat without a number waits outside the harbour until the master of the harbour has seen it. The harbour closes at nine."
)
_CODE = """def total_price(items, tax_rate):
    total_price = 0
    for item in items:
        total_price = total_price + item.price * item.count
    total_price = total_price + total_price * tax_rate
    return total_price

def mean_price(items):
    if not items:
        return 0
    return total_price(items, 0) / len(items)
"""
TASKS = {
    "copy": f"Repeat the following text word for word, and add nothing:\n\n{_NOTE}",
    "edit": f"Rewrite this Python code with a comment above each function. Change nothing else:\n\n```python\n{_CODE}```",
    "free": "Tell a short story about a lighthouse keeper who finds a letter.",
}
"""By name, what a model is asked for. The last one is the control: its answer repeats nothing of the question."""


@dataclass(frozen=True)
class Run:
    """One task decoded once. `steps` and `seconds` begin when the first token is known."""

    tokens: int
    steps: int
    seconds: float
    drafted: int
    accepted: int

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / max(1, self.steps)


@dataclass(frozen=True)
class Comparison:
    """One task without and with guesses. `differs_at`: the first output that is another, None if they are the same."""

    task: str
    plain: Run
    guessed: Run
    differs_at: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="smollm2", help="as for serve; dummy:<preset> gets random prompts")
    parser.add_argument("--tokens", type=int, default=4, help="most tokens guessed in a step (default 4)")
    parser.add_argument("--output-len", type=int, default=96, help="tokens decoded of each task (default 96)")
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--cache-dir", default=DEFAULT_CACHE)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def run(args: argparse.Namespace) -> int:
    if min(args.output_len, args.max_model_len) < 2:
        raise ConfigError("--output-len and --max-model-len must be at least 2")
    speculation = Speculation(args.tokens)
    check_outputs(*([args.json] if args.json else []))
    engine, prompts = _open(args)
    comparisons = []
    for task, prompt in prompts.items():
        most = min(args.output_len, args.max_model_len - len(prompt))
        comparisons.append(compare(engine, task, prompt, most, speculation))
        print(_line(comparisons[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in comparisons], indent=1))
    return 0


def compare(engine: Engine, task: str, prompt: Sequence[int], tokens: int, speculation: Speculation) -> Comparison:
    """Decode `tokens` greedily, plainly and with guesses. Each once before it counts, so that nothing is run for the first time."""
    request = Request(task, "bench", "bench", tuple(prompt), SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True))  # fmt: skip
    results = []
    for guesses in (None, speculation):
        decode(engine, request, guesses)
        results.append(decode(engine, request, guesses))
    (plain, expected), (guessed, got) = results
    differing = (at for at, (one, other) in enumerate(zip(expected, got, strict=True)) if one != other)
    return Comparison(task, plain, guessed, next(differing, None))


def decode(engine: Engine, request: Request, speculation: Speculation | None) -> tuple[Run, list[int]]:
    """One request on an instance of its own, one step ahead of what is read, as a device loop does it."""
    limits = engine.config
    core = InstanceCore(
        InstanceConfig(
            InstanceRef("bench", 1), "", "", frozenset({Role.PREFILL, Role.DECODE}), limits.num_pages, limits.page_size, limits.max_num_seqs,
            limits.max_model_len, limits.chunk_tokens, limits.max_prefill_rows, prefix_cache=False, speculation=speculation,
        ),
        stop_probe=_no_probe,
        random=random.Random(0),
    )  # fmt: skip
    engine.rebuild()
    outputs: list[int] = []
    in_flight: deque[tuple[Any, bool]] = deque()
    steps, began = 0, 0.0
    answers = list(core.handle(Command(StartLocal(request)), 0.0))
    while True:
        answers += core.handle(DeviceReady(), 0.0)
        planned = False
        for answer in answers:
            if isinstance(answer, StepPlan):
                in_flight.append((engine.dispatch(answer), all(row.decode for row in answer.rows)))
                planned = True
            elif isinstance(answer, Emit):
                began = began or time.perf_counter()
                outputs += [token.token for token in answer.tokens]
        answers = []
        if len(in_flight) == 2 or (in_flight and not planned):
            pending, decodes = in_flight.popleft()
            answers = list(core.handle(StepDone(engine.collect(pending)), 0.0))
            steps += decodes
        elif not planned:
            seconds, counts = time.perf_counter() - began, core.speculated
            return Run(len(outputs) - 1, steps, seconds, counts.drafted, counts.accepted), outputs


def _no_probe(stops: tuple[str, ...]) -> Any:
    raise AssertionError("no task has stop strings")


def _open(args: argparse.Namespace) -> tuple[Engine, dict[str, list[int]]]:
    """(a compiled engine of one sequence, the prompts in tokens)."""
    import jax

    from triptych.models.hub.bundle import open_model
    from triptych.models.hub.errors import ModelFetchError
    from triptych.models.hub.resolve import resolve_model
    from triptych.models.hub.text import open_text
    from triptych.models.kernels.auto import kernel_for
    from triptych.models.kernels.names import AUTO_KERNEL
    from triptych.models.weights.load import load_decoder
    from triptych.runtime.engine.config import engine_config
    from triptych.runtime.engine.engine import Engine
    from triptych.sharding.mesh import make_mesh

    device = jax.devices()[0]
    dtype = args.dtype if args.dtype != "auto" else "float32" if device.platform == "cpu" else "bfloat16"
    try:
        resolved = resolve_model(args.model, Path(args.cache_dir).expanduser(), progress=_tell)
        bundle, text = open_model(resolved), open_text(resolved)
    except (ModelFetchError, OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    prompts = _prompts(args.model, bundle.config.vocab_size, text)
    if beyond := [task for task, prompt in prompts.items() if args.max_model_len - len(prompt) < 2]:
        raise ConfigError(f"task {beyond[0]} has {len(prompts[beyond[0]])} tokens; raise --max-model-len")
    mesh = make_mesh([device], 1)
    config = engine_config(
        num_pages=2 * -(-args.max_model_len // 16) + 1,
        max_num_seqs=1,
        max_model_len=args.max_model_len,
        chunk_tokens=min(256, args.max_model_len),
        kv_dtype=dtype,
        roles=frozenset({Role.DECODE}),  # one program for prompts is enough
        prompt_logprobs=False,
        speculative_tokens=args.tokens,
        attention=kernel_for(AUTO_KERNEL, device, bundle.config.head_dim, 16),
    )
    engine = Engine(config, load_decoder(bundle.config, bundle.tensor_source, mesh, dtype), mesh)
    report = engine.compile(lambda name, done, total: _tell(f"{done}/{total} {name}"))
    _tell(f"{report.programs} programs in {report.seconds:.1f} s; {bundle.config.num_layers} layers, {dtype}, {device.device_kind}")  # fmt: skip
    return engine, prompts


def _prompts(model: str, vocab: int, text: ModelText) -> dict[str, list[int]]:
    """In tokens, by task; of a model that understands nothing, one that repeats."""
    if text.tokenizer is None or text.chat_template is None or model.startswith("dummy:"):
        rng = random.Random(0)
        phrase = [rng.randrange(vocab) for _ in range(16)]
        return {"random": phrase * 4}
    tokenizer, template = text.tokenizer, text.chat_template
    return {
        task: tokenizer.encode(template.render([{"role": "user", "content": asked}]), add_special_tokens=False)
        for task, asked in TASKS.items()
    }


def _line(one: Comparison) -> str:
    plain, guessed = one.plain, one.guessed
    same = "same tokens" if one.differs_at is None else f"differ from token {one.differs_at}"
    return (
        f"{one.task:<8}{plain.tokens:>5} tokens  steps {plain.steps:>4} -> {guessed.steps:>4} ({guessed.tokens_per_step:.2f} tokens a step)  "
        f"accepted {guessed.accepted}/{guessed.drafted}  ms a token {plain.seconds / plain.tokens * 1e3:.2f} -> "
        f"{guessed.seconds / guessed.tokens * 1e3:.2f}  {same}"
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""Engines and instance cores for the parts of a run, on weights that all parts share.

A part's engine has the programs that an instance with its limits has and that its steps choose, and no others: what they do not choose would only be
compiled. Sizes are those of serving (`default_buckets`), padding included.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jax.sharding import Mesh

from triptych.models.kv import KV_CODES, bytes_per_token, kv_groups
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.request import Request
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.buckets import Buckets, Demand, ProgramChoice
from triptych.runtime.engine.compiling import CompileReport
from triptych.runtime.engine.config import EngineConfig, engine_config
from triptych.runtime.engine.engine import Engine
from triptych.runtime.instance.composer import DefaultComposer, StepChoice, StepComposer, StepLimits, StepView
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.core import InstanceCore
from triptych.runtime.instance.termination import StopProbe
from triptych.tools.bench.engine.loop import EngineLoop
from triptych.tools.bench.engine.work import ModelWork
from triptych.tools.bench.floor import step_parameter_bytes

if TYPE_CHECKING:
    from triptych.models.weights.load import LoadedDecoder

BOTH = frozenset({Role.PREFILL, Role.DECODE})
MODEL_LEN_STEP = 1024  # tokens: block tables are as wide as a served instance's


@dataclass(frozen=True)
class Rig:
    """What all parts share. `seconds` is the time for each figure; `tell` hears of progress. `kv`: as --kv-cache-dtype."""

    loaded: LoadedDecoder
    mesh: Mesh
    dtype: str
    page_size: int
    attention: str
    compile_threads: int
    seconds: float
    tell: Callable[[str], None]
    kv: str = "auto"

    @property
    def kv_dtype(self) -> str:
        """As numpy names it."""
        return self.dtype if self.kv == "auto" else KV_CODES.get(self.kv, self.kv)

    @property
    def work(self) -> ModelWork:
        """The model's bytes and operations."""
        config = self.loaded.config
        kv = bytes_per_token(kv_groups(config, self.kv_dtype)) // config.num_layers
        return ModelWork(config, step_parameter_bytes(self.loaded), kv, self.loaded.rules.tp)

    def pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def config(
        self,
        *,
        sequences: int,
        longest: int,
        chunk: int,
        tokens: int,
        prefill_rows: int = 4,
        demands: Sequence[Demand] | None = None,
    ) -> EngineConfig:
        """The engine of a part: at most `sequences` at once of at most `longest` tokens, prompts `chunk` tokens a step, room for `tokens` of KV.

        `demands`: of the steps that it will run; None: any. Each sequence gets a page more than its share of `tokens`, for what is left over.
        """
        full = model_len(longest)
        limits = engine_config(
            num_pages=1 + max(self.pages(tokens) + sequences, self.pages(full)),
            max_num_seqs=sequences,
            max_model_len=full,
            chunk_tokens=chunk,
            page_size=self.page_size,
            max_prefill_rows=prefill_rows,
            kv_dtype=self.kv_dtype,
            roles=BOTH,
            prompt_logprobs=False,
            compile_threads=self.compile_threads,
            attention=self.attention,
        )
        return limits if demands is None else replace(limits, buckets=only_chosen(limits, demands))

    def engine(self, config: EngineConfig) -> tuple[Engine, CompileReport]:
        """Compiled and warm."""
        engine = Engine(config, self.loaded, self.mesh)
        report = engine.compile(lambda name, done, total: None)
        self.tell(
            f"{report.programs} programs ({report.from_cache} from the cache) in {report.seconds:.1f} s, warm in {report.warm_up_seconds:.1f} s"
        )
        return engine, report


def model_len(longest: int) -> int:
    """A served instance's limit, not one made for the measurement: the next multiple of MODEL_LEN_STEP."""
    return -(-longest // MODEL_LEN_STEP) * MODEL_LEN_STEP


def only_chosen(config: EngineConfig, demands: Iterable[Demand]) -> Buckets:
    """The buckets' programs that these demands choose, and the one that holds every step."""
    choice = ProgramChoice(config.buckets, config.max_prefill_rows)
    shapes = {choice.cheapest(demand)[0] for demand in demands}
    limits = (config.max_num_seqs, config.max_prefill_rows, config.chunk_tokens, config.pages_per_sequence)
    shapes.add(choice.cheapest(Demand(*limits))[0])
    return Buckets(tuple(sorted(shapes)), config.buckets.draws)


class Composer:
    """What a served instance composes, within `limits`; None: within those of the instance, which for steps that are skipped may be beyond the engine's."""

    shortest_first = False

    def __init__(self, limits: StepLimits | None) -> None:
        self.limits = limits
        self._default = DefaultComposer()

    def compose(self, view: StepView) -> StepChoice:
        return self._default.compose(view if self.limits is None else replace(view, limits=self.limits))


def loop_over(
    engine: Engine, *, chunk: int | None = None, waiting: int = 1, composer: StepComposer | None = None
) -> EngineLoop:
    """A fresh instance on the engine; at most `waiting` requests may wait. `chunk`: prompt tokens a step; None: as many as the engine holds."""
    e = engine.config
    return EngineLoop(
        _core(e, chunk or e.chunk_tokens, e.max_prefill_rows, waiting, composer or Composer(None)), engine
    )


def decoding(engine: Engine, sequences: int, context: int, output_tokens: int, waiting: int = 0) -> EngineLoop:
    """An instance on which so many sequences of `context` tokens are about to decode. Their prompts are not computed: one step, which is skipped, has all
    of them. `waiting` more requests may wait."""
    e = engine.config
    composer = Composer(None)
    loop = EngineLoop(_core(e, sequences * context, sequences, sequences + waiting, composer), engine)
    prompt = (1,) * context
    for number in range(sequences):
        loop.submit(request(number, prompt, output_tokens))
    skipped = loop.skip()
    assert skipped is not None and len(skipped.rows) == sequences, f"{sequences} prompts of {context} tokens do not fit"
    composer.limits = StepLimits(e.max_num_seqs, e.chunk_tokens, e.max_prefill_rows)
    return loop


def _core(e: EngineConfig, chunk: int, prefill_rows: int, waiting: int, composer: StepComposer) -> InstanceCore:
    config = InstanceConfig(
        ref=InstanceRef("bench", 1), address="", digest="", roles=BOTH, num_pages=e.num_pages, page_size=e.page_size, max_num_seqs=e.max_num_seqs,
        max_model_len=e.max_model_len, chunk_tokens=chunk, max_prefill_rows=prefill_rows, max_waiting=waiting, prefix_cache=False,
    )  # fmt: skip
    return InstanceCore(config, stop_probe=_no_stop_strings, random=random.Random(0), composer=composer)


def request(number: int, prompt: tuple[int, ...], output_tokens: int) -> Request:
    """A greedy one of exactly so many tokens."""
    params = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    return Request(str(number), "", "", prompt, params)


def random_prompt(vocab: int, tokens: int, seed: int) -> tuple[int, ...]:
    """Random ids: equal ones would read one row of the embedding table."""
    return tuple(random.Random(seed).choices(range(vocab), k=tokens))


def _no_stop_strings(stop: tuple[str, ...]) -> StopProbe:
    raise AssertionError(f"no request here has stop strings, but {stop} came")

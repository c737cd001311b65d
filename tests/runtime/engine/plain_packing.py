"""What the engine packs and reads, row by row and draw by draw: slow, obvious, and the oracle of the packers that work by columns."""

from __future__ import annotations

import numpy as np

from triptych.runtime.core.request import Logprobs
from triptych.runtime.core.sampling import SamplingParams
from triptych.runtime.engine.batch import NO_MEDIA, extend_packing
from triptych.runtime.engine.buckets import Demand, ExtendShape, ProgramChoice
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.placing import place_media
from triptych.runtime.engine.sample import sample_packing
from triptych.runtime.engine.variants import Variant
from triptych.runtime.instance.plan import Draw, Drawn, Row, RowResult, Seat, StepPlan, StepResult

Views = dict[str, np.ndarray]


def pack_rows(plan: StepPlan, config: EngineConfig) -> tuple[ExtendShape, np.ndarray, tuple[int, ...]]:
    """(program, packed vector, where each row's tokens lie)."""
    rows, size = tuple(plan.rows), config.page_size
    prefill = [row for row in rows if not row.decode]
    demand = Demand(
        decode_rows=len(rows) - len(prefill),
        prefill_rows=len(prefill),
        prefill_tokens=sum(row.length for row in prefill),
        scored=any(row.score for row in rows),
        width=max(-(-(row.start + row.length) // size) for row in rows),
    )
    shape, apart = ProgramChoice(config.buckets, config.max_prefill_rows).cheapest(demand)
    packed, views = extend_packing(shape, config).host()
    views["carried"].fill(config.carried)
    if "media_index" in views:
        views["media_index"].fill(NO_MEDIA)
    views["cu_q_lens"][:] = np.minimum(np.arange(len(views["cu_q_lens"])), shape.decode_rows)
    first_token, places, decodes, place, token = [], [], 0, shape.decode_rows, shape.decode_rows
    for row in rows:
        if row.decode and apart:
            first_token.append(decodes)
            places.append(decodes)
            _fill(views, row, decodes, decodes, shape.width, config)
            decodes += 1
        else:
            first_token.append(token)
            places.append(place)
            _fill(views, row, place, token, shape.width, config)
            place, token = place + 1, token + row.length
            views["cu_q_lens"][place:] = token
    picks = [at for row, at in zip(rows, places, strict=True) for _ in row.draws]
    views["picks"][: len(picks)] = picks
    return shape, packed, tuple(first_token)


def _fill(views: Views, row: Row, place: int, first: int, width: int, config: EngineConfig) -> None:
    size = config.page_size
    for index, page in enumerate(row.pages[:width]):
        views["page_indices"][place, index] = page
    views["kv_lens"][place] = row.start + row.length
    if row.tokens:
        views["tokens"][first : first + row.length] = row.tokens
    else:
        views["carried"][first] = row.guess * config.max_num_seqs + row.token_slot
    for at in range(row.length):
        views["positions"][..., first + at] = row.position + at
        index = row.start + at
        views["write_index"][first + at] = row.pages[index // size] * size + index % size
    place_media(views["positions"], row, first)
    for run in row.embedded:
        for at in range(run.count):
            index = run.first + at
            views["media_index"][first + run.at + at] = run.pages[index // size] * size + index % size
    for item in row.attended:
        used = -(-item.count // size)
        views["attended_lens"][place] = item.count
        views["attended_pages"][place, :used] = item.pages[:used]


def pack_draws(
    plan: StepPlan, seats: dict[int, Seat], sizes: tuple[int, ...], beyond: int
) -> tuple[Variant, int, np.ndarray, tuple[int | None, ...]]:
    """(variant, size, packed vector, likely tokens to report) of a plan with draws; greedy and random ones, and the full variant's sparse ids."""
    draws = [draw for row in plan.rows for draw in row.draws]
    variant = max((_least(seats[draw.slot], draw) for draw in draws), key=list(Variant).index)
    size = min(size for size in sizes if size >= len(draws))
    packed, views = sample_packing(variant, size).host()
    views["slot"].fill(beyond)
    if "repetition" in views:
        views["repetition"].fill(1.0)
    for at, draw in enumerate(draws):
        seat = seats[draw.slot]
        params = seat.params
        values = {
            "slot": draw.slot,
            "position": draw.position,
            "sample": seat.sample,
            "repetition": params.repetition_penalty,
        }
        values |= {"frequency": params.frequency_penalty, "presence": params.presence_penalty}
        values |= {"seed_high": params.seed % 2**64 >> 32, "seed_low": params.seed % 2**32}
        values |= {name: getattr(params, name) for name in ("temperature", "min_p", "top_p", "top_k")}
        for name, value in values.items():
            if name in views:
                views[name][at] = value
        if variant is Variant.FULL:
            sparse = [*dict(params.logit_bias).items(), *((token, -np.inf) for token in _forbidden(seat, draw))]
            for index, (token, value) in enumerate(sparse):
                views["sparse_ids"][at, index], views["sparse_values"][at, index] = token, value
    return variant, size, packed, tuple(seats[draw.slot].params.logprobs for draw in draws)


def _forbidden(seat: Seat, draw: Draw) -> tuple[int, ...]:
    least = seat.forbidden if draw.position < seat.forbidden_until else ()
    return (*least, *seat.forbidden_first) if draw.position == seat.first else least


def _least(seat: Seat, draw: Draw) -> Variant:
    params: SamplingParams = seat.params
    if params.penalised or params.logit_bias or params.logprobs is not None or _forbidden(seat, draw):
        return Variant.FULL
    if params.greedy:
        return Variant.GREEDY
    return Variant.FILTERED if params.top_k > 0 or params.top_p < 1 or params.min_p > 0 else Variant.RANDOM


def read(
    plan: StepPlan,
    words: np.ndarray | None,
    logprobs: tuple[int | None, ...],
    scores: np.ndarray | None,
    score_rows: tuple[int, ...],
    guesses: np.ndarray | None,
) -> StepResult:
    """The results of a step from the device's words."""
    rows, at = [], 0
    for index, row in enumerate(plan.rows):
        drawn = []
        for draw in row.draws:
            assert words is not None
            about = None if logprobs[at] is None else _logprobs(words[at, 1:], logprobs[at] or 0)
            drawn.append(Drawn(draw.slot, int(words[at, 0]), about))
            at += 1
        scored = [] if scores is None else [scores[score_rows[index] + i] for i in range(len(row.score))]
        guess = None
        if row.guess:
            assert guesses is not None
            (draft,) = (at for at, draft in enumerate(plan.drafts) if draft.slot == row.token_slot)
            guess = int(guesses[draft, row.guess - 1])
        scores_of = tuple(_logprobs(each, row.score_top) for each in scored)
        rows.append(RowResult(row.sequence, tuple(drawn), scores_of, guess))
    return StepResult(plan.id, tuple(rows))


def _logprobs(words: np.ndarray, top: int) -> Logprobs:
    floats, held = words.view(np.float32), (len(words) - 1) // 2
    pairs = [(int(words[1 + i]), float(floats[1 + held + i])) for i in range(min(top, held))]
    return Logprobs(float(floats[0]), tuple(pairs))

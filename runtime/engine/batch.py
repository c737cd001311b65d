"""The rows of a plan as the inputs of an `extend` program: which bucket, and the packed vector.

A program has D decode rows (one token each, token i being row i's), then P prefill rows that lie one after another in Tp token slots.
A plan's rows come in any order; decode-shaped ones go to the decode segment (decode_segment.py) when the program has one, and each row's place
is only needed here, because the program picks the hidden state of every draw, its row's last, in plan order.

All padding points at the null page 0, has KV length 0 and comes after what is real in its segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add

import numpy as np

from triptych.runtime.engine.block_tables import BlockTables, check_pages
from triptych.runtime.engine.buckets import Demand, ExtendShape, PlanError, ProgramChoice
from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.decode_segment import fill_decodes, too_short
from triptych.runtime.engine.packing import Field, Packing
from triptych.runtime.engine.placing import place_media
from triptych.runtime.instance.columns import Columns, columns_of, draws_of
from triptych.runtime.instance.plan import Attended, Embedded, Row, StepPlan

# Media index of a token that is embedded by its id.
NO_MEDIA = -1


def takes_media(shape: ExtendShape, config: EngineConfig) -> bool:
    """Whether the program reads the media pool: its rows attend to what is there, or it has tokens of prompts, which may be embeddings."""
    return config.attended > 0 or _takes_embeddings(shape, config)


def _takes_embeddings(shape: ExtendShape, config: EngineConfig) -> bool:
    return config.takes_media and shape.prefill_tokens > 0


def extend_packing(shape: ExtendShape, config: EngineConfig) -> Packing:
    """The inputs of an extend program. `carried` is where the token's id is among those carried on the device, or beyond them: the id is given.

    `media_index` is the slot of the media pool that a token's embedding is in, or NO_MEDIA. `positions` are [3, tokens] where M-RoPE's may differ.
    `attended_lens` and `attended_pages` are how many entries of the media pool a row attends to, and where they are. `picks` are the rows that are drawn from.
    """
    rows = shape.rows(config.max_prefill_rows)
    embedded = _takes_embeddings(shape, config)
    names = ("tokens", "carried", "positions", "write_index")
    names = (*names, "media_index") if embedded else names
    three = {"positions"} if embedded and config.mrope else set()
    per_token = tuple(Field(name, (3, shape.tokens) if name in three else (shape.tokens,)) for name in names)
    attended: tuple[Field, ...] = ()
    if config.attended:
        attended = (Field("attended_lens", (rows,)), Field("attended_pages", (rows, config.attended_pages)))
    return Packing(
        (
            *per_token,
            Field("kv_lens", (rows,)),
            Field("cu_q_lens", (rows + 1,)),
            Field("page_indices", (rows, shape.width)),
            *attended,
            Field("picks", (config.max_draws,)),
        )
    )


@dataclass(frozen=True)
class ExtendBatch:
    """One step's rows, packed. `first_token[i]` is where plan row i's tokens lie in the program."""

    shape: ExtendShape
    packed: np.ndarray
    first_token: tuple[int, ...]


class BatchPacker:
    """Packs rows for the compiled shapes."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._packings = {shape: extend_packing(shape, config) for shape in config.buckets.extend}
        self._choice = ProgramChoice(config.buckets, config.max_prefill_rows)
        shapes = config.buckets.extend
        most, width = max(shape.decode_rows for shape in shapes), max(shape.width for shape in shapes)
        self._tables = BlockTables(most, width, config.num_pages)
        self._one_token_each = np.arange(most + 1, dtype=np.int32)

    def pack(self, plan: StepPlan) -> ExtendBatch | None:
        """None for a plan without rows. Raises PlanError if it does not fit a compiled shape."""
        if not plan.rows:
            return None
        columns = columns_of(plan.rows)
        lengths = [len(tokens) or 1 for tokens in columns["tokens"]]
        shape, decode, prefill = self._place(columns, lengths)
        packed, views = self._packings[shape].host()
        views["carried"].fill(self._config.carried)
        if "media_index" in views:
            views["media_index"].fill(NO_MEDIA)
        views["cu_q_lens"][: shape.decode_rows + 1] = self._one_token_each[: shape.decode_rows + 1]
        first_token = list(range(len(plan.rows)))
        if prefill:
            for place, at in enumerate(decode):
                first_token[at] = place
        places = first_token.copy()
        if shape.prefill_tokens:
            for place, at in enumerate(prefill, start=shape.decode_rows):
                places[at] = place
            self._fill_prefills(views, plan.rows, shape, prefill, first_token)
        if decode:
            if prefill:
                columns = {name: [column[at] for at in decode] for name, column in columns.items()}
            if any(columns["guess"]):
                slots = map(self._config.carried_at, columns["token_slot"], columns["guess"])
                columns = {**columns, "token_slot": list(slots)}
            fill_decodes(views, columns, shape.width, self._config.page_size, self._tables)
            if any(columns["attended"]):
                for place, attended in enumerate(zip(columns["sequence"], columns["attended"], strict=True)):
                    self._attend(views, *attended, place)
        self._pick(views["picks"], places, draws_of(plan.rows).counts)
        return ExtendBatch(shape, packed, tuple(first_token))

    def _place(self, columns: Columns, lengths: list[int]) -> tuple[ExtendShape, Sequence[int], Sequence[int]]:
        """(program, indices of the rows in its decode segment, indices of the rows in its prefill segment)."""
        decode = everything = range(len(lengths))
        prefill: list[int] = []
        if max(lengths) > 1 or any(columns["score"]) or any(columns["embedded"]):
            shaped = zip(lengths, columns["score"], columns["embedded"], strict=True)
            prefill = [at for at, (length, score, embedded) in enumerate(shaped) if length > 1 or score or embedded]
            others = set(prefill)
            decode = [at for at in everything if at not in others]
        demand = Demand(
            decode_rows=len(decode),
            prefill_rows=len(prefill),
            prefill_tokens=sum([lengths[at] for at in prefill]),
            width=-(-max(map(add, columns["start"], lengths)) // self._config.page_size),
            fresh=lengths[0] > 1 and len(lengths) == 1 and columns["start"][0] == 0,
            scored=any(columns["score"]),
        )
        shape, apart = self._choice.cheapest(demand)
        return (shape, decode, prefill) if apart else (shape, (), everything)

    def _fill_prefills(
        self,
        views: dict[str, np.ndarray],
        rows: Sequence[Row],
        shape: ExtendShape,
        prefill: Sequence[int],
        first_token: list[int],
    ) -> None:
        """Write the prefill segment, and to `first_token` where the tokens of its rows lie."""
        token, cu_q_lens = shape.decode_rows, views["cu_q_lens"]
        for place, at in enumerate(prefill, start=shape.decode_rows):
            first_token[at] = token
            self._fill(views, rows[at], place, token, shape.width)
            token += rows[at].length
            cu_q_lens[place + 1] = token
        cu_q_lens[shape.decode_rows + len(prefill) + 1 :] = token

    def _fill(self, views: dict[str, np.ndarray], row: Row, place: int, token: int, width: int) -> None:
        """Write one row's numbers at row `place` and token slot `token`. Raises PlanError for a block table that is too short or wrong."""
        length, size = row.length, self._config.page_size
        if row.start + length > len(row.pages) * size:
            raise too_short(row.sequence, len(row.pages), row.start + length)
        check_pages(row.pages, self._config.num_pages)
        for run in row.embedded:
            self._embed(views, row, run, token)
        self._attend(views, row.sequence, row.attended, place)
        views["kv_lens"][place] = row.start + length
        pages = views["page_indices"][place]
        used = min(len(row.pages), width)
        pages[:used] = row.pages[:used]
        if not row.tokens:
            views["carried"][token] = self._config.carried_at(row.token_slot, row.guess)
        if length == 1:
            if row.tokens:
                views["tokens"][token] = row.tokens[0]
            views["positions"][..., token] = row.position
            if row.embedded:
                place_media(views["positions"], row, token)
            views["write_index"][token] = row.pages[row.start // size] * size + row.start % size
            return
        here = slice(token, token + length)
        index = np.arange(row.start, row.start + length)
        views["tokens"][here] = row.tokens
        views["positions"][..., here] = np.arange(row.position, row.position + length)
        place_media(views["positions"], row, token)
        views["write_index"][here] = pages[index // size] * size + index % size

    def _embed(self, views: dict[str, np.ndarray], row: Row, run: Embedded, token: int) -> None:
        """Point the run's tokens of a row at token slot `token` to their embeddings. Raises PlanError for what is not in the pool."""
        size, index = self._config.page_size, np.arange(run.first, run.first + run.count)
        if "media_index" not in views or run.count < 1 or run.at < 0 or run.at + run.count > row.length:
            raise PlanError(
                f"sequence {row.sequence}: {run} in a row of {row.length} tokens, {self._config.media_pages} media pages"
            )
        if run.first < 0 or index[-1] // size >= len(run.pages):
            raise PlanError(
                f"sequence {row.sequence}: {len(run.pages)} media pages cannot hold embeddings {run.first} to {index[-1]}"
            )
        if not all(0 < page < self._config.media_pages for page in run.pages):
            raise PlanError(f"media pages {run.pages} are named; the pool has {self._config.media_pages}")
        pages = np.asarray(run.pages, np.int32)
        views["media_index"][token + run.at : token + run.at + run.count] = pages[index // size] * size + index % size

    def _attend(self, views: dict[str, np.ndarray], sequence: int, attended: tuple[Attended, ...], place: int) -> None:
        """Point a row to what it attends to, if it does. Raises PlanError for what is not in the pool, or cannot be attended to."""
        if not attended:
            return
        item, *others = attended
        if others or "attended_lens" not in views:
            raise PlanError(
                f"sequence {sequence} attends to {len(attended)} items; the model attends to {int(self._config.attended > 0)}"
            )
        used = -(-item.count // self._config.page_size)
        if not 0 < item.count <= self._config.attended or used > len(item.pages):
            raise PlanError(
                f"sequence {sequence} attends to {item.count} entries in {len(item.pages)} media pages; a row attends to at most {self._config.attended}"
            )
        if not all(0 < page < self._config.media_pages for page in item.pages):
            raise PlanError(f"media pages {item.pages} are named; the pool has {self._config.media_pages}")
        views["attended_lens"][place] = item.count
        views["attended_pages"][place, :used] = item.pages[:used]

    def _pick(self, picks: np.ndarray, places: list[int], draws: Sequence[int]) -> None:
        """The row that each draw is from, draws in plan order; `draws` says how many each row has."""
        wanted = places if draws.count(1) == len(draws) else np.repeat(places, draws)
        if len(wanted) > len(picks):
            raise PlanError(f"the plan draws {len(wanted)} tokens; the engine holds {len(picks)}")
        picks[: len(wanted)] = wanted

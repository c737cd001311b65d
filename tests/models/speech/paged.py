"""Rows of text over paged KV, each with a window of its own, as an engine would lay them out: shuffled pages, padding."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from triptych.models.attend import KV
from triptych.models.ragged import Ragged
from triptych.models.speech.decoder import CrossRows, WhisperDecoder, cross_kv, extend, write_cross
from triptych.models.speech.kv import whisper_kv_groups
from triptych.models.speech.load import LoadedWhisper

PAGE_SIZE = 4
ROWS, TOKENS, WIDTH = 4, 16, 8
NUM_PAGES = 1 + ROWS * WIDTH


@dataclass
class Row:
    """One sequence: its tokens so far, its text pages, its cross pages."""

    pages: np.ndarray
    cross_pages: np.ndarray
    length: int = 0
    tokens: list[int] = field(default_factory=list)


class PagedWhisper:
    """A decoder with its pools. `step` takes (row, tokens) pairs; decode rows first."""

    def __init__(self, loaded: LoadedWhisper[WhisperDecoder], seed: int = 0) -> None:
        self.loaded, self.config = loaded, loaded.config
        own, cross = whisper_kv_groups(self.config, str(loaded.structure.dtype))
        self.cross_width = -(-self.config.audio_positions // PAGE_SIZE)
        self.pools = loaded.structure.allocate_pools(own, NUM_PAGES, PAGE_SIZE)
        self.cross_pools = loaded.structure.allocate_pools(cross, 1 + ROWS * self.cross_width, PAGE_SIZE)
        # What other sequences left behind must not be seen.
        self.pools, self.cross_pools = (
            jax.tree.map(lambda pool: pool.at[:].set(jnp.nan), pools) for pools in (self.pools, self.cross_pools)
        )
        shuffled = np.random.default_rng(seed)
        self._free = shuffled.permutation(np.arange(1, NUM_PAGES)).reshape(ROWS, WIDTH)
        self._free_cross = shuffled.permutation(np.arange(1, 1 + ROWS * self.cross_width)).reshape(ROWS, -1)
        self.rows: list[Row] = []
        self._programs = {}

    def hear(self, states: np.ndarray) -> Row:
        """A new row for a window's states [positions, hidden]."""
        row = Row(self._free[len(self.rows)], self._free_cross[len(self.rows)])
        self.rows.append(row)
        at = np.arange(self.config.audio_positions)
        write = row.cross_pages[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE

        @jax.jit
        def program(params, pools: tuple[KV, ...], states, write):
            return write_cross(pools, cross_kv(self.loaded.merge(params), states), write)

        self.cross_pools = program(self.loaded.params, self.cross_pools, states, write)
        return row

    def step(self, decode: list[tuple[Row, int]], ragged: list[tuple[Row, list[int]]]) -> list[np.ndarray]:
        """Logits [tokens, vocab] of each row's new tokens, in the order given."""
        batch, cross, spans = self._batch(decode, ragged)
        if batch.decode_rows not in self._programs:

            @jax.jit
            def program(params, pools, cross_pools, batch, cross):
                decoder = self.loaded.merge(params)
                hidden, pools = extend(decoder, pools, cross_pools, batch, cross)
                return decoder.head(hidden), pools

            self._programs[batch.decode_rows] = program
        program = self._programs[batch.decode_rows]
        logits, self.pools = program(self.loaded.params, self.pools, self.cross_pools, batch, cross)
        return [np.asarray(logits[start:stop]) for start, stop in spans]

    def _batch(
        self, decode: list[tuple[Row, int]], ragged: list[tuple[Row, list[int]]]
    ) -> tuple[Ragged, CrossRows, list[tuple[int, int]]]:
        # A padding decode row, and a padding ragged row, in every step.
        decode_rows = len(decode) + 1
        work = [*((row, [token]) for row, token in decode), (None, [0]), *ragged, (None, [])]
        tokens, positions, write = (np.zeros(TOKENS + decode_rows, np.int32) for _ in range(3))
        kv_lens, table = np.zeros(len(work), np.int32), np.zeros((len(work), WIDTH), np.int32)
        heard, cross_table = np.zeros(len(work), np.int32), np.zeros((len(work), self.cross_width), np.int32)
        ends, spans = [0], []
        for index, (row, new) in enumerate(work):
            start, stop = ends[-1], ends[-1] + len(new)
            ends.append(stop)
            if row is None:
                continue
            at = row.length + np.arange(len(new))
            tokens[start:stop], positions[start:stop] = new, at
            write[start:stop] = row.pages[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
            row.length += len(new)
            row.tokens += new
            kv_lens[index], table[index] = row.length, row.pages
            heard[index], cross_table[index] = self.config.audio_positions, row.cross_pages
            spans.append((start, stop))
        arrays = [jnp.asarray(part) for part in (tokens, positions, write, kv_lens, table, np.array(ends, np.int32))]
        batch = Ragged(*arrays, decode_rows=decode_rows, max_q_len=TOKENS)
        return batch, CrossRows(jnp.asarray(heard), jnp.asarray(cross_table)), spans

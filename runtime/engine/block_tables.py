"""Block tables as lines of one array that is kept between steps: a line is written again only where its sequence's pages changed.

Writing a table of 64 pages into an array takes some 4 microseconds, and a sequence that decodes takes a new page once in a page of tokens. A plan names the
pages of each of its rows, as a tuple that stays the same object until they change; so a line that was made of this very tuple is what it should be, whoever
the sequence is by now.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triptych.runtime.engine.buckets import PlanError

Pages = tuple[int, ...]


class BlockTables:
    """Lines for `rows` sequences of one step and as many of steps before, each of `width` pages.

    Lines of sequences that are gone are given to others when there are no more: nobody has to say that one ended.
    """

    def __init__(self, rows: int, width: int, num_pages: int) -> None:
        self._num_pages = num_pages
        self._table = np.zeros((2 * rows, width), np.int32)
        self._pages: list[Pages] = [()] * (2 * rows)  # of which each line was made
        self._lines: dict[int, int] = {}  # of each sequence
        self._free = list(range(2 * rows))

    def of(self, sequences: Sequence[int], pages: Sequence[Pages], width: int) -> np.ndarray:
        """[len(sequences), width]: the first pages of each, then zeros. At most `rows` sequences; one that is named again has the same pages.

        Raises PlanError if it has not, and for pages that are not in the pool.
        """
        lines, made_of = self._lines, self._pages
        found: list[int] = []
        written = False
        for sequence, table in zip(sequences, pages, strict=True):
            line = lines.get(sequence)
            if line is None or made_of[line] is not table:
                line, written = self._write(sequence, table, sequences), True
            found.append(line)
        if written:
            self._check(sequences, pages, found)
        return self._table[found, :width]

    def _write(self, sequence: int, pages: Pages, sequences: Sequence[int]) -> int:
        check_pages(pages, self._num_pages)
        line = self._lines.get(sequence)
        if line is None:
            if not self._free:
                self._forget_others(sequences)
            line = self._lines[sequence] = self._free.pop()
        before, table = self._pages[line], self._table[line]
        same = len(before) if pages[: len(before)] == before else 0
        used = min(len(pages), len(table))
        if same < used:
            table[same:used] = pages[same:used]
        table[used : len(before)] = 0
        self._pages[line] = pages
        return line

    def _forget_others(self, sequences: Sequence[int]) -> None:
        keep = set(sequences)
        gone = [sequence for sequence in self._lines if sequence not in keep]
        self._free += [self._lines.pop(sequence) for sequence in gone]

    def _check(self, sequences: Sequence[int], pages: Sequence[Pages], lines: list[int]) -> None:
        for sequence, table, line in zip(sequences, pages, lines, strict=True):
            if self._pages[line] is not table and self._pages[line] != table:
                raise PlanError(
                    f"sequence {sequence} has two block tables in one plan: {table} and {self._pages[line]}"
                )


def check_pages(pages: Pages, num_pages: int) -> None:
    """A program does not check what it gathers by: a wrong page would be somebody's memory. Raises PlanError."""
    if min(pages) < 0 or max(pages) >= num_pages:
        raise PlanError(f"pages {min(pages)} to {max(pages)} are named; the pool has {num_pages}")

"""A draft model for the fake device. Its KV is the tokens themselves, in pages of its own: what it was never shown, or shown in the wrong place, shows when
it guesses. It knows what the device draws, and is wrong only where a test says so."""

from __future__ import annotations

from collections.abc import Callable

from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.plan import Draft, StepPlan


class FakeDraft:
    """`predict(slot, tokens)`: what the device draws for a slot behind these tokens."""

    def __init__(self, config: InstanceConfig, predict: Callable[[int, list[int]], int]):
        self.config = config
        self.pages: list[list[int | None]] = [[None] * config.page_size for _ in range(config.num_pages)]
        self.wrong: Callable[[int], bool] = lambda position: False
        self.read = 0  # tokens of catch-ups
        self._predict = predict

    def run(self, plan: StepPlan, last: Callable[[int], int]) -> dict[int, list[int]]:
        """The guesses of each slot; `last`: what a slot drew last."""
        assert len(plan.catch_ups) <= self.config.max_prefill_rows
        assert sum(row.length for row in plan.catch_ups) <= self.config.chunk_tokens
        for row in plan.catch_ups:
            assert row.tokens and not row.draws and row.position == row.start
            self.read += len(row.tokens)
            for offset, token in enumerate(row.tokens):
                self._write(row.pages, row.start + offset, token)
        assert len({draft.slot for draft in plan.drafts}) == len(plan.drafts), "a slot is guessed for twice"
        rounds = max((draft.count for draft in plan.drafts), default=0)
        return {draft.slot: self._guess(draft, last, rounds)[: draft.count] for draft in plan.drafts}

    def _guess(self, draft: Draft, last: Callable[[int], int], rounds: int) -> list[int]:
        before, *known = draft.tokens
        assert draft.position == draft.start and len(known) <= 1 and draft.count >= 1
        self._write(draft.pages, draft.start, before)
        token = known[0] if known else last(draft.slot)
        guesses: list[int] = []
        for at in range(draft.start + 1, draft.start + 1 + rounds):
            self._write(draft.pages, at, token)
            if at < len(draft.pages) * self.config.page_size:
                token = self._predict(draft.slot, self.tokens(draft.pages, at + 1)) + self.wrong(at + 1)
            guesses.append(token)
        return guesses

    def tokens(self, pages: tuple[int, ...], count: int) -> list[int]:
        """The first `count` tokens of a block table."""
        found = []
        for index in range(count):
            token = self.pages[pages[index // self.config.page_size]][index % self.config.page_size]
            assert token is not None, f"the draft model lacks KV index {index}"
            found.append(token)
        return found

    def _write(self, pages: tuple[int, ...], index: int, token: int) -> None:
        page, place = divmod(index, self.config.page_size)
        if page < len(pages):
            self.pages[pages[page]][place] = token

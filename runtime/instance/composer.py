"""StepComposer: what enters an instance's next step. One of the five policy protocols (design.md, One control plane).

A composer sees numbers only and answers with numbers; the planner turns them into rows. It cannot overrun memory or
compiled shapes: the planner refuses a choice beyond the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from triptych.runtime.core.errors import TriptychError
from triptych.runtime.core.instance import Role


class InvalidCompositionError(TriptychError):
    """A composer chose more than the limits, or other than one number per candidate."""


@dataclass(frozen=True)
class StepLimits:
    """The shapes that the instance's programs were compiled for."""

    max_num_seqs: int
    chunk_tokens: int
    max_prefill_rows: int
    encode_patches: int = 0


@dataclass(frozen=True)
class ChunkCandidate:
    """A sequence that holds its pages and has `tokens` known tokens left to compute; `scored` for prompt logprobs.
    `embedded`: the next one is of a media item."""

    tokens: int
    scored: bool
    waited: float  # seconds since its task arrived
    embedded: bool = False

    @property
    def plain(self) -> bool:
        """Whether a single token of it fits among the decode rows."""
        return not (self.scored or self.embedded)


@dataclass(frozen=True)
class StepView:
    """`decodes` sequences can decode, oldest first; `chunks` can be computed further, in order of admission; `patches` has the
    patches of every media item that can be encoded, in order."""

    decodes: int
    chunks: Sequence[ChunkCandidate]
    limits: StepLimits
    patches: Sequence[int] = ()

    def check(self, choice: StepChoice) -> None:
        """Raises InvalidCompositionError if `choice` does not fit."""
        if not 0 <= choice.decodes <= self.decodes:
            raise InvalidCompositionError(f"{choice.decodes} decode rows were chosen of {self.decodes}")
        if len(choice.chunks) != len(self.chunks):
            raise InvalidCompositionError(f"{len(choice.chunks)} chunks were chosen for {len(self.chunks)} candidates")
        rows = tokens = 0
        singles = choice.decodes
        for chosen, candidate in zip(choice.chunks, self.chunks, strict=True):
            if not 0 <= chosen <= candidate.tokens:
                raise InvalidCompositionError(f"a chunk of {chosen} tokens was chosen of {candidate.tokens}")
            if chosen > 1 or (chosen and not candidate.plain):
                rows, tokens = rows + 1, tokens + chosen
            else:
                singles += chosen
        if singles > self.limits.max_num_seqs:
            raise InvalidCompositionError(f"{singles} rows of one token were chosen; the limits are {self.limits}")
        if rows > self.limits.max_prefill_rows or tokens > self.limits.chunk_tokens:
            raise InvalidCompositionError(
                f"{tokens} prefill tokens in {rows} rows were chosen; the limits are {self.limits}"
            )
        if not 0 <= choice.patches <= self.limits.encode_patches:
            raise InvalidCompositionError(f"{choice.patches} patches were chosen; the limits are {self.limits}")


@dataclass(frozen=True)
class StepChoice:
    """How many sequences decode (the oldest), how many tokens of each candidate are computed (0: none), and how many patches may
    be encoded: the first items are, as long as they fit."""

    decodes: int
    chunks: tuple[int, ...] = ()
    patches: int = 0


class StepComposer(Protocol):
    """Deterministic; called once a step. `shortest_first`: short prompts are admitted before longer ones, so that there is something to choose from."""

    @property
    def shortest_first(self) -> bool: ...

    def compose(self, view: StepView) -> StepChoice: ...


class DefaultComposer:
    """All decodes, then prefill chunks in order, as in Sarathi-Serve (Agrawal et al. 2024, arXiv 2403.02310): topology PD.

    A candidate with a single token left and nothing to score has the shape of a decode row and takes no share of the
    prefill limits. Nearly always there are enough decode rows, because a candidate that draws holds a slot that is not
    decoding yet; for one that draws nothing (a resumed prompt) the youngest decode may have to sit a step out.

    Media are encoded beside all of that, as much as the programs hold, but never in two steps in a row while sequences
    decode: an encode makes the step longer for each of them, and so at most every second token comes late, however many
    images wait. Without decodes nobody waits for the step but prompts, which mostly wait for the images.
    """

    shortest_first = False

    def __init__(self) -> None:
        self._encoded_last = False

    def compose(self, view: StepView) -> StepChoice:
        return self.with_chunks(view, _chunks(view))

    def with_chunks(self, view: StepView, chunks: tuple[int, ...]) -> StepChoice:
        """The step that has these chunks."""
        singles = sum(n == 1 and c.plain for n, c in zip(chunks, view.chunks, strict=True))
        encode = bool(view.patches) and not (view.decodes and self._encoded_last)
        self._encoded_last = encode
        patches = view.limits.encode_patches if encode else 0
        return StepChoice(min(view.decodes, view.limits.max_num_seqs - singles), chunks, patches)


class PromptsFirst:
    """For work whose tokens nobody waits for one by one: decodes sit out the steps that prompts fill, otherwise as `DefaultComposer`.

    Such a step is bound by arithmetic, so decode rows gain nothing in it, and programs have room for `max_num_seqs` of them or for none. Once prompts are in,
    sequences decode together, in fewer and larger steps. A prompt that does not fill a step does not keep decodes waiting, so slots that become free one by one
    are filled beside them. While prompts keep coming, sequences wait: not for those who read along.
    """

    FULL = 0.75  # of the chunk: rows may run out before tokens do
    shortest_first = False

    def __init__(self) -> None:
        self._default = DefaultComposer()

    def compose(self, view: StepView) -> StepChoice:
        choice = self._default.compose(view)
        filled = sum(choice.chunks) >= self.FULL * view.limits.chunk_tokens
        return replace(choice, decodes=0) if filled else choice


class ShortestFirst:
    """As `DefaultComposer`, but half of a step's prompt tokens are for the oldest prompt, and the others go to those with the fewest tokens left (shortest
    remaining processing time first, Schrage 1968).

    A short prompt that comes behind long ones need not wait until they are computed, and the oldest takes at most twice as long, however many short ones
    come. What either half leaves goes to the other one. With a single prefill row it is first come, first served.
    """

    shortest_first = True

    def __init__(self) -> None:
        self._default = DefaultComposer()

    def compose(self, view: StepView) -> StepChoice:
        prompts = [at for at, candidate in enumerate(view.chunks) if not _single(candidate)]
        if not prompts:
            return self._default.compose(view)
        oldest = max(prompts, key=lambda at: view.chunks[at].waited)
        limits = view.limits
        own = min(view.chunks[oldest].tokens, max(1, limits.chunk_tokens // 2))
        others = [at for at in range(len(view.chunks)) if at != oldest]
        others.sort(key=lambda at: (not _single(view.chunks[at]), view.chunks[at].tokens))  # singles need no row
        rest = replace(
            limits,
            chunk_tokens=limits.chunk_tokens - own,
            max_prefill_rows=limits.max_prefill_rows - 1,
            max_num_seqs=limits.max_num_seqs - 1,  # a chunk of one token has the shape of a decode row
        )
        taken = _filled(view.chunks, others, rest)
        left = limits.chunk_tokens - sum(n for at, n in taken.items() if n > 1 or not view.chunks[at].plain)
        chunks = tuple(taken.get(at, 0) for at in range(len(view.chunks)))
        chosen = min(view.chunks[oldest].tokens, left)
        return self._default.with_chunks(view, (*chunks[:oldest], chosen, *chunks[oldest + 1 :]))


class TakingTurns:
    """Steps of encodes only, of prefill chunks only and of decode rows only, in turns while there is work for each: topologies
    (P-D), (E-P), (E-P-D).

    What separate loops on one device come to where programs run one after another: a decode step is never longer than
    its own work, and waits for at most one encode step of `encode_patches` patches and one prefill step of `chunk_tokens`
    tokens. The instance's share (`limits`) bounds the latter, so it sets how compute is split.
    """

    shortest_first = False

    def __init__(self) -> None:
        self._last = Role.DECODE

    def compose(self, view: StepView) -> StepChoice:
        work = {Role.ENCODE: bool(view.patches), Role.PREFILL: bool(view.chunks), Role.DECODE: view.decodes > 0}
        first = _TURNS.index(self._last) + 1
        turns = _TURNS[first:] + _TURNS[:first]
        self._last = next((role for role in turns if work[role]), Role.DECODE)
        none = (0,) * len(view.chunks)
        if self._last is Role.ENCODE:
            return StepChoice(0, none, view.limits.encode_patches)
        if self._last is Role.PREFILL:
            return StepChoice(0, _chunks(view))
        return StepChoice(view.decodes, none)


_TURNS = (Role.ENCODE, Role.PREFILL, Role.DECODE)


def _chunks(view: StepView) -> tuple[int, ...]:
    """As many tokens of each candidate, in order, as the limits allow."""
    filled = _filled(view.chunks, range(len(view.chunks)), view.limits)
    return tuple(filled.get(at, 0) for at in range(len(view.chunks)))


def _single(candidate: ChunkCandidate) -> bool:
    return candidate.tokens == 1 and candidate.plain


def _filled(candidates: Sequence[ChunkCandidate], order: Iterable[int], limits: StepLimits) -> dict[int, int]:
    """By candidate, as many tokens of each in this order as the limits allow."""
    chosen: dict[int, int] = {}
    tokens, rows, singles = limits.chunk_tokens, limits.max_prefill_rows, limits.max_num_seqs
    for at in order:
        candidate = candidates[at]
        if _single(candidate):
            if not singles:
                break
            chosen[at] = 1
            singles -= 1
            continue
        if not rows or not tokens:
            break
        count = min(candidate.tokens, tokens)
        if count == 1 and candidate.plain:
            if not singles:
                break
            singles -= 1
        chosen[at] = count
        tokens -= count
        rows -= 1
    return chosen


DEFAULT_COMPOSER = "default"
COMPOSERS: Mapping[str, Callable[[], StepComposer]] = {
    DEFAULT_COMPOSER: DefaultComposer,
    "prompts-first": PromptsFirst,
    "shortest-first": ShortestFirst,
}
"""By name, what composes the steps of instances; where stages have loops of their own it is `TakingTurns` instead."""

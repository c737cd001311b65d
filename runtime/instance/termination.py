"""When one sample ends. The instance that decodes decides; the gateway hides what must not be shown.

In order, for each drawn token: EOS and stop token ids (the token is emitted, with finish STOP), stop strings over the
detokenised text, and
length: `max_tokens` outputs, or `max_model_len` tokens in all. With `min_tokens` m, ids that end may not be drawn for
the first m outputs (the sampler is told: Seat.forbidden), and stop strings that are complete within them are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from triptych.runtime.core.request import Finish, FinishReason, Request


class StopProbe(Protocol):
    """Finds stop strings in the text of one sample."""

    def push(self, token: int) -> str | None:
        """The stop string that `token` completes, or None."""
        ...


StopProbeFactory = Callable[[tuple[str, ...]], StopProbe]

_LENGTH = Finish(FinishReason.LENGTH)


class Termination:
    """The end of one sample. Keeps a StopProbe only if the request has stop strings.

    Attributes:
        limit: outputs after which the sample ends with LENGTH.
        forbidden: ids that may not be drawn at positions below `forbidden_until`.
    """

    __slots__ = ("_finishes", "_make_probe", "_min_tokens", "_probe", "_stop", "forbidden", "forbidden_until", "limit")

    def __init__(self, request: Request, *, eos_ids: Iterable[int], max_model_len: int, stop_probe: StopProbeFactory):
        params, prompt = request.sampling, len(request.prompt)
        room = max_model_len - prompt
        self.limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self._finishes = {token: Finish(FinishReason.STOP, token) for token in params.stop_token_ids}
        if not params.ignore_eos:
            self._finishes |= {token: Finish(FinishReason.STOP) for token in eos_ids}
        self._min_tokens = params.min_tokens
        self._stop = params.stop
        self._make_probe = stop_probe
        self._probe: StopProbe | None = None
        self.forbidden = tuple(sorted(self._finishes)) if params.min_tokens else ()
        self.forbidden_until = prompt + params.min_tokens if params.min_tokens else 0

    def check(self, token: int, outputs: int) -> Finish | None:
        """How the sample ends with `token`, its `outputs`-th output (1 is the first), or None if it goes on. Call once
        per output, in order."""
        finish = self._finishes.get(token)
        if finish is not None and outputs > self._min_tokens:
            return finish
        if self._stop:
            matched = self._push(token)
            if matched is not None and outputs > self._min_tokens:
                return Finish(FinishReason.STOP, matched)
        return _LENGTH if outputs >= self.limit else None

    def replay(self, outputs: Iterable[int]) -> None:
        """Take notice of outputs that another instance emitted and did not end at."""
        if self._stop:
            for token in outputs:
                self._push(token)

    def _push(self, token: int) -> str | None:
        if self._probe is None:
            self._probe = self._make_probe(self._stop)
        matched = self._probe.push(token)
        if matched is not None:
            self._probe = None  # if this match is ignored (min_tokens), the search begins afresh behind it
        return matched

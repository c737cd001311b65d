"""What a client gets: chunks while a generation runs, a result when it is over. Folding one into the other is shared by both clients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InstanceLostError


@dataclass(frozen=True)
class Token:
    """One token, exactly. `logprob`, `text` and `top` (token id, log-probability, text) only when logprobs were asked for."""

    id: int
    position: int
    logprob: float | None = None
    text: str = ""
    top: tuple[tuple[int, float, str], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """What is new of one sample. Its last chunk has a `finish_reason` ("stop" or "length") and no text or tokens.

    `matched` is the stop string or stop token id that ended it, None for EOS and length. Text may lag behind tokens.
    """

    sample: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    matched: str | int | None = None


@dataclass
class Sample:
    """One sample so far; complete once it has a `finish_reason`."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    matched: str | int | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token.id for token in self.tokens]


@dataclass
class Result:
    """A generation, filled while its stream is read.

    Attributes:
        usage, timings: set by the stream's last message.
        prompt_logprobs: one entry per prompt token when asked for; the first has no logprob.
    """

    request_id: str = ""
    prompt_tokens: int = 0
    samples: list[Sample] = field(default_factory=list)
    usage: pb.Usage | None = None
    timings: pb.Timings | None = None
    prompt_logprobs: tuple[Token, ...] = ()

    @property
    def text(self) -> str:
        """The first sample's text."""
        return self.samples[0].text if self.samples else ""

    @property
    def complete(self) -> bool:
        return self.usage is not None

    def feed(self, response: pb.GenerateResponse) -> Chunk | None:
        """Take one message of the stream; the chunk it makes, if it is about a sample."""
        kind = response.WhichOneof("kind")
        if kind == "prompt":
            self.request_id = response.prompt.request_id
            self.prompt_tokens = response.prompt.prompt_tokens
            self.prompt_logprobs = tuple(map(_token, response.prompt.prompt_logprobs)) or self.prompt_logprobs
        elif kind == "summary":
            self.usage, self.timings = response.summary.usage, response.summary.timings
        elif kind == "delta":
            chunk = Chunk(response.delta.sample, response.delta.text, tuple(map(_token, response.delta.tokens)))
            sample = self._sample(chunk.sample)
            sample.text += chunk.text
            sample.tokens.extend(chunk.tokens)
            return chunk
        elif kind == "completion":
            done = response.completion
            which = done.WhichOneof("matched")
            chunk = Chunk(
                done.sample, finish_reason=done.finish_reason, matched=None if which is None else getattr(done, which)
            )
            sample = self._sample(chunk.sample)
            sample.finish_reason, sample.matched = chunk.finish_reason, chunk.matched
            return chunk
        return None

    def fold(self, responses: Iterable[pb.GenerateResponse]) -> Result:
        for response in responses:
            self.feed(response)
        return self

    def check_complete(self) -> None:
        """A stream that ends OK without its summary was cut by something between the server and here."""
        if not self.complete:
            raise InstanceLostError("the stream ended without its summary; expected one as the last message")

    def _sample(self, index: int) -> Sample:
        while len(self.samples) <= index:
            self.samples.append(Sample())
        return self.samples[index]


def _token(detail: pb.TokenDetail) -> Token:
    return Token(
        detail.token,
        detail.position,
        detail.logprob if detail.HasField("logprob") else None,
        detail.text,
        tuple((candidate.token, candidate.logprob, candidate.text) for candidate in detail.top),
    )

"""The transcripts of a sound's windows as one answer: texts in order with one space between them, usage and times added up. A pure state machine.

What a window says is fed in the order of the windows: all of one, then all of the next. What goes out is what a request of its own would give: one
PromptInfo, deltas, one Completion, one Summary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from triptych.proto.v1 import inference_pb2 as pb

_ADDED = ("prefill", "transfer", "kv_bytes", "pages_pulled", "pages_skipped", "preemptions", "encode", "media_items", "encode_tasks", "encoded_items", "embedding_bytes")  # fmt: skip
_LARGEST = ("queue", "total", "attempts", "media")
_USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens", "media_tokens")


@dataclass
class Transcript:
    """One answer.

    Args:
        request_id: as the client knows it.
        windows: how many there are.
        seconds: of the whole sound.
    """

    request_id: str
    windows: int
    seconds: float
    _summaries: list[pb.Summary] = field(default_factory=list)
    _begun: bool = False  # whether there is text before what comes
    _blank: bool = True  # whether what comes begins a window
    _held: str = ""  # white space that may turn out to be the end of a window
    _cut: bool = False

    def feed(self, response: pb.GenerateResponse) -> pb.GenerateResponse | None:
        """Take the next message of the window that is being read; what goes out for it, if anything."""
        match response.WhichOneof("kind"):
            case "prompt" if not self._summaries and self._blank:
                tokens = response.prompt.prompt_tokens * self.windows
                return pb.GenerateResponse(prompt=pb.PromptInfo(request_id=self.request_id, prompt_tokens=tokens))
            case "delta":
                response.delta.text = self._text(response.delta.text)
                return response
            case "completion":
                self._cut = self._cut or response.completion.finish_reason == "length"
            case "summary":
                self._summaries.append(response.summary)
                self._blank, self._held = True, ""
        return None

    def end(self) -> tuple[pb.GenerateResponse, pb.GenerateResponse]:
        """The Completion and the Summary, after all windows."""
        reason = "length" if self._cut else "stop"
        completion = pb.GenerateResponse(completion=pb.Completion(sample=0, finish_reason=reason))
        return completion, pb.GenerateResponse(summary=self._summary())

    def _text(self, text: str) -> str:
        """What of a window's next text can be shown: without white space at either end of the window, and with one space before it."""
        if self._blank:
            text = text.lstrip()
            if not text:
                return ""
            self._held = " " if self._begun else ""
            self._blank, self._begun = False, True
        whole = self._held + text
        shown = whole.rstrip()
        self._held = whole[len(shown) :]
        return shown

    def _summary(self) -> pb.Summary:
        first = self._summaries[0]
        summary = pb.Summary(usage=pb.Usage(audio_seconds=self.seconds))
        for name in _USAGE:
            setattr(summary.usage, name, sum(getattr(one.usage, name) for one in self._summaries))
        for name in _ADDED:
            setattr(summary.timings, name, sum(getattr(one.timings, name) for one in self._summaries))
        for name in _LARGEST:
            setattr(summary.timings, name, max(getattr(one.timings, name) for one in self._summaries))
        summary.timings.first_token = first.timings.first_token
        summary.timings.prefill_instance = _names(one.timings.prefill_instance for one in self._summaries)
        summary.timings.decode_instance = _names(one.timings.decode_instance for one in self._summaries)
        return summary


def _names(instances: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(instances))

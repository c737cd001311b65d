"""/v1/completions: the body to a `Generation`, chunks to OpenAI's objects.

`echo` puts the prompt's text before the answer's, and its log-probabilities before the answer's where they are asked for. With max_tokens 0 it
gives the prompt alone (how texts are scored): one token is generated then, and neither shown nor counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from triptych.runtime.client import AsyncClient, Chunk, Result, Token
from triptych.runtime.core.sampling import MAX_LOGPROBS
from triptych.runtime.gateway.http import logprobs, sampling
from triptych.runtime.gateway.http.errors import bad_field
from triptych.runtime.gateway.http.fields import NOTHING, Fields, Inert, only, token_ids, wrong
from triptych.runtime.gateway.http.generation import Generation, Prompt

DEFAULT_MAX_TOKENS = 16  # OpenAI's
INERT: dict[str, Inert] = sampling.INERT | {
    "suffix": NOTHING,
    "add_special_tokens": only(True),
    "prompt_embeds": NOTHING,
}


@dataclass(frozen=True)
class Echo:
    """What of the prompts appears in the answer. `alone`: nothing else does."""

    wanted: bool
    alone: bool


def parse(body: Mapping[str, Any], id: str, max_prompts: int) -> tuple[Generation, Echo]:
    """A body of /v1/completions. Raises HttpError 400 naming the field."""
    fields = Fields(body, INERT)
    prompts = _prompts(fields.take("prompt"), max_prompts)
    max_tokens = fields.integer("max_tokens", 0)
    max_tokens = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    echo = Echo(fields.flag("echo") or False, alone=max_tokens == 0)
    if echo.alone and not echo.wanted:
        raise bad_field("max_tokens", "max_tokens is 0; expected at least 1, or echo to be true")
    top, prompt_top = fields.integer("logprobs", 0, MAX_LOGPROBS), fields.integer("prompt_logprobs", 0, MAX_LOGPROBS)
    stream, include_usage, continuous_usage = sampling.streaming(fields)
    if stream and prompt_top is not None:
        raise bad_field("prompt_logprobs", "prompt_logprobs is set; expected it only where stream is false")
    samples = fields.integer("n", 1, 128)
    best_of = fields.integer("best_of", 1, 128)
    if best_of is not None and best_of != (samples or 1):
        raise bad_field(
            "best_of", f"best_of is {best_of}; expected it unset or equal to n: all samples are returned here"
        )
    options = sampling.shared_sampling(fields)
    options["max_tokens"] = max(1, max_tokens)
    options["n"] = samples
    options["logprobs"] = top
    echoed = top if echo.wanted else None
    options["prompt_logprobs"] = max((t for t in (prompt_top, echoed) if t is not None), default=None)
    generation = Generation(
        id=id,
        model=fields.text("model") or "",
        prompts=prompts,
        sampling=options,
        samples=samples or 1,
        fields=frozenset(body),
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        priority=sampling.place_in_queue(fields),
        cache_salt=fields.text("cache_salt") or "",
    )
    fields.finish()
    return generation, echo


def _prompts(value: Any, limit: int) -> tuple[Prompt, ...]:
    """A text, an array of texts, an array of token ids, or an array of arrays of token ids."""
    expected = "a string, an array of strings, an array of token ids, or an array of arrays of token ids"
    if value is None:
        raise bad_field("prompt", f"prompt is not set; expected {expected}")
    if isinstance(value, str):
        return (Prompt(text=value),)
    if not isinstance(value, list) or not value:
        wrong("prompt", value, expected)
    if type(value[0]) is int:
        return (Prompt(token_ids=token_ids("prompt", value)),)
    if len(value) > limit:
        raise bad_field("prompt", f"prompt has {len(value)} entries; expected at most {limit}")
    prompts = []
    for index, entry in enumerate(value):
        if isinstance(entry, str):
            prompts.append(Prompt(text=entry))
        elif isinstance(entry, list) and entry:
            prompts.append(Prompt(token_ids=token_ids(f"prompt[{index}]", entry, param="prompt")))
        else:
            wrong("prompt", value, expected)
    return tuple(prompts)


async def echoed_texts(client: AsyncClient, generation: Generation) -> list[str]:
    """The text of every prompt; that of token ids is asked from the gateway."""
    return [
        await client.detokenize(prompt.token_ids or ()) if prompt.text is None else prompt.text
        for prompt in generation.prompts
    ]


class CompletionFormat:
    """OpenAI's objects of one completion request.

    Args:
        texts: the prompts' texts where `echo` wants them.
    """

    def __init__(self, generation: Generation, model: str, echo: Echo, texts: Sequence[str]):
        self._generation = generation
        self._model = model
        self._echo = echo
        self._texts = texts
        self._created = int(time.time())
        self._with_logprobs = generation.sampling.get("logprobs") is not None
        self._offsets: dict[int, int] = {}

    def ready(self, results: Sequence[Result]) -> bool:
        """Whether chunks can be sent: the prompt's log-probabilities come before everything else."""
        return not (self._echo.wanted and self._with_logprobs) or all(r.prompt_logprobs for r in results)

    def opening(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        """The prompt of every choice, where it is wanted."""
        if not self._echo.wanted:
            return []
        pieces = []
        for prompt, result in enumerate(results):
            tokens = self._prompt_tokens(prompt, result)
            for sample in range(self._generation.samples):
                pieces.append(self._chunk(self._choice(prompt, sample), self._texts[prompt], tokens))
        return pieces

    def piece(self, prompt: int, chunk: Chunk) -> dict[str, Any] | None:
        choice = self._choice(prompt, chunk.sample)
        if chunk.finish_reason is not None:
            return self._chunk(choice, "", (), "length" if self._echo.alone else chunk.finish_reason)
        return None if self._echo.alone else self._chunk(choice, chunk.text, chunk.tokens)

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The chunk with usage and no choices."""
        return self._answer([]) | {"usage": self._counted(usage)}

    def whole(self, results: Sequence[Result], usage: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for prompt, result in enumerate(results):
            before = self._prompt_tokens(prompt, result)
            for index, sample in enumerate(result.samples):
                shown = () if self._echo.alone else tuple(sample.tokens)
                text = (self._texts[prompt] if self._echo.wanted else "") + ("" if self._echo.alone else sample.text)
                choice = {
                    "index": self._choice(prompt, index),
                    "text": text,
                    "logprobs": logprobs.completion_logprobs((*before, *shown), 0) if self._with_logprobs else None,
                    "finish_reason": "length" if self._echo.alone else sample.finish_reason,
                }
                if self._generation.sampling.get("prompt_logprobs") is not None and not self._echo.wanted:
                    choice["prompt_logprobs"] = logprobs.prompt_logprobs(result.prompt_logprobs)
                choices.append(choice)
        return self._answer(choices) | {"usage": self._counted(usage)}

    def _counted(self, usage: dict[str, Any]) -> dict[str, Any]:
        return usage | {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]} if self._echo.alone else usage

    def _choice(self, prompt: int, sample: int) -> int:
        return prompt * self._generation.samples + sample

    def _prompt_tokens(self, prompt: int, result: Result) -> tuple[Token, ...]:
        """The prompt's tokens with their log-probabilities; the first, of which the gateway spells nothing, gets what text is left."""
        if not (self._echo.wanted and self._with_logprobs):
            return ()
        first, *rest = result.prompt_logprobs
        behind = sum(len(token.text) for token in rest)
        return (replace(first, text=self._texts[prompt][: max(0, len(self._texts[prompt]) - behind)]), *rest)

    def _chunk(
        self, choice: int, text: str, tokens: Sequence[Token], finish_reason: str | None = None
    ) -> dict[str, Any]:
        spelled = None
        if self._with_logprobs and finish_reason is None:
            spelled = logprobs.completion_logprobs(tokens, self._offsets.get(choice, 0))
            self._offsets[choice] = self._offsets.get(choice, 0) + sum(len(token.text) for token in tokens)
        entry = {"index": choice, "text": text, "logprobs": spelled, "finish_reason": finish_reason}
        return self._answer([entry])

    def _answer(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._generation.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

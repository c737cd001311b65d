"""The served model as the gateway knows it: names, limits and text tools, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.models.text.chat import ChatTemplate
from triptych.models.text.tokenizer import Tokenizer
from triptych.runtime.core.sampling import SamplingParams


@dataclass(frozen=True)
class SamplingDefaults:
    """What an unset sampling field means for this model. Everything else unset means `SamplingParams`' own default."""

    temperature: float = SamplingParams.temperature
    top_k: int = SamplingParams.top_k
    top_p: float = SamplingParams.top_p
    min_p: float = SamplingParams.min_p
    repetition_penalty: float = SamplingParams.repetition_penalty

    @staticmethod
    def from_generation_config(config: Mapping[str, Any]) -> SamplingDefaults:
        """From a Hugging Face generation_config.json.

        As in vLLM, `do_sample` is not read: a missing temperature is 1.0, and a client asks for greedy decoding with temperature 0.
        """
        kept = {name: config[name] for name in SamplingDefaults.__dataclass_fields__ if config.get(name) is not None}
        return SamplingDefaults(**kept)


@dataclass(frozen=True)
class ServedModel:
    """One served model.

    Attributes:
        name: what requests call it; an empty name in a request means this model.
        vocab_size: number of logits: token ids are below it. The tokenizer may know fewer.
        max_model_len: prompt and generated tokens together.
        tokenizer: None for weights without a vocabulary; then only token ids go in and no text comes out.
        chat_template: None for a base model: chat input is refused.
    """

    name: str
    architecture: str
    revision: str
    vocab_size: int
    max_model_len: int
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None = None
    eos_token_ids: tuple[int, ...] = ()
    parameters: int = 0
    defaults: SamplingDefaults = SamplingDefaults()

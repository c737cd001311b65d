"""The served model as the gateway knows it: names, limits and text tools, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.models.errors import UnsupportedModelError
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.prompt import MarkerIds, marker_ids
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.tokens import SpeechTokens
from triptych.models.text.chat import ChatTemplate
from triptych.models.text.tokenizer import Tokenizer
from triptych.runtime.core.media import MediaKind
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
class MediaModel:
    """What a model takes beside text.

    Attributes:
        config: how media are processed, and how they stand in a prompt.
        markers: the same as token ids.
        placeholders: what a prompt or a template writes for one medium of each kind that the model takes.
    """

    config: MultimodalConfig
    markers: MarkerIds
    placeholders: Mapping[MediaKind, str]

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        return tuple(self.placeholders)

    @property
    def takes_videos(self) -> bool:
        """Whether a video has a place of its own in a prompt; else its frames are so many pictures."""
        return self.config.markers.video_id is not None

    def token(self, kind: MediaKind) -> int:
        """The id of the placeholder of a medium."""
        markers = self.config.markers
        return markers.video_id if kind is MediaKind.VIDEO and markers.video_id is not None else markers.image_id

    def part(self, kind: MediaKind) -> str:
        """The type of content part that a chat template knows a medium by."""
        return MediaKind.IMAGE.value if kind is MediaKind.VIDEO and not self.takes_videos else kind.value

    @property
    def placeholder(self) -> str:
        """That of an image."""
        return self.placeholders[MediaKind.IMAGE]

    @staticmethod
    def of(config: MultimodalConfig, tokenizer: Tokenizer) -> MediaModel:
        """Raises UnsupportedModelError if the vocabulary lacks a marker that the model needs."""
        markers = config.markers
        spelt = {MediaKind.IMAGE: (markers.image_id, markers.image), MediaKind.VIDEO: (markers.image_id, markers.image)}
        if markers.video_id is not None:
            spelt[MediaKind.VIDEO] = (markers.video_id, markers.video)
        placeholders: dict[MediaKind, str] = {}
        for kind, (token, text) in spelt.items():
            piece = text if text is not None else tokenizer.piece(token)
            if piece is None:
                raise UnsupportedModelError(f"the tokenizer has no token {token}, which stands for an {kind.value}")
            placeholders[kind] = piece
        return MediaModel(config, marker_ids(markers, tokenizer.id_of), placeholders)


@dataclass(frozen=True)
class SpeechModel:
    """What a model that writes down speech knows beside its vocabulary. It takes one sound a request, and no text.

    Attributes:
        config: the size of a window.
        tokens: prompts, by language and task.
    """

    config: WhisperConfig
    tokens: SpeechTokens

    @property
    def max_tokens(self) -> int:
        """Of one window's transcript: half of the decoder's positions, as in the paper's own decoder."""
        return self.config.max_position // 2


@dataclass(frozen=True)
class ServedModel:
    """One served model.

    Attributes:
        name: what requests call it; an empty name in a request means this model.
        vocab_size: number of logits: token ids are below it. The tokenizer may know fewer.
        max_model_len: prompt and generated tokens together.
        tokenizer: None for weights without a vocabulary; then only token ids go in and no text comes out.
        chat_template: None for a base model: chat input is refused.
        media: what prompts may contain beside text; None: nothing.
        speech: of a model that writes down speech; None for others.
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
    media: MediaModel | None = None
    speech: SpeechModel | None = None

    @property
    def media_kinds(self) -> tuple[MediaKind, ...]:
        """What it takes beside text, or instead of it."""
        if self.speech is not None:
            return (MediaKind.AUDIO,)
        return () if self.media is None else self.media.kinds

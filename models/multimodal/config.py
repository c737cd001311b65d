"""A vision-language model as data: the language model, the encoder with its connector, processing, and its markers.

One frozen, hashable value; no JAX, no weights. Encode instances need `vision`, prefill and decode instances `text`,
gateways everything but the sizes of either.
"""

import hashlib
from dataclasses import dataclass, replace

from triptych.models.config import ModelConfig
from triptych.models.errors import UnsupportedModelError
from triptych.models.multimodal.plans import ImagePlan, Processing, TileProcessing, plan_image
from triptych.models.multimodal.video import VideoProcessing
from triptych.models.vision.config import VisionConfig


@dataclass(frozen=True)
class MediaMarkers:
    """How media stand in a prompt. A template writes `image` once an image; it is repeated for each embedding row.

    Attributes:
        image_id: the token that is repeated. video_id: the same for videos; None if the model has no videos.
        image, video: their spellings, None if only the tokenizer knows.
        before, after: spellings of the tokens that must stand around the repeated ones, None for none.
    """

    image_id: int
    image: str | None
    video_id: int | None = None
    video: str | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class MultimodalConfig:
    """A vision-language model.

    `tokens_per_second` is how far apart, in rotary positions, a second of video is (M-RoPE models only). An embedding is
    one or more parts, each of the language model's hidden size; `injections` are pairs of (layer, part): a media token's
    input to the layer is that part of its embedding. Usual models have one part, at layer 0. `video` is how the model was
    trained to take videos; None: it was not, and sees one as pictures in a row (`video_processing`).
    """

    text: ModelConfig
    vision: VisionConfig
    processing: Processing
    markers: MediaMarkers
    tokens_per_second: float | None = None
    injections: tuple[tuple[int, int], ...] = ((0, 0),)
    video: VideoProcessing | None = None

    def __post_init__(self) -> None:
        layers, parts = [layer for layer, _ in self.injections], max(part for _, part in self.injections) + 1
        if layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < self.text.num_layers:
            raise UnsupportedModelError(f"injections at layers {layers} of {self.text.num_layers}")
        if self.vision.output_size != self.text.hidden_size * parts:
            raise UnsupportedModelError(
                f"the encoder gives rows of {self.vision.output_size} numbers, the language model takes "
                f"{self.text.hidden_size}" + (f" in each of {parts} parts" if parts > 1 else "")
            )

    def plan(self, width: int, height: int) -> ImagePlan:
        """What becomes of an image of this size; see `plan_image`."""
        return plan_image(self.processing, self.vision, width, height)

    @property
    def video_processing(self) -> VideoProcessing:
        """How videos are taken; of a model that was not trained on any a frame a second, at most sixteen, each as one picture."""
        if self.video is not None:
            return self.video
        frame = self.processing
        if isinstance(frame, TileProcessing):
            frame = replace(frame, min_tiles=1, max_tiles=1)
        return VideoProcessing(frame, rate=1.0, least=1, most=16)

    def processing_key(self) -> str:
        """A canonical string of whatever decides the pieces and embeddings of given pixels: for content hashes."""
        return f"{self.processing!r} {self.vision.fingerprint()}"

    def fingerprint(self) -> str:
        """Hex digest of everything that changes what is computed."""
        parts = (self.text.fingerprint(), self.processing_key(), repr(self.markers), repr(self.tokens_per_second))
        parts = (*parts, repr(self.video_processing))
        if self.injections != ((0, 0),):
            parts = (*parts, repr(self.injections))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

"""What a gateway needs for the media of its model, put together."""

from __future__ import annotations

from triptych.runtime.core.clock import Clock
from triptych.runtime.gateway.config import GatewayConfig
from triptych.runtime.gateway.media.desk import MediaDesk, Processor
from triptych.runtime.gateway.media.keep import PixelKeep
from triptych.runtime.gateway.media.processor import PooledProcessor
from triptych.runtime.gateway.media.speech import SpeechProcessor
from triptych.runtime.gateway.media.uploads import UploadShelf
from triptych.runtime.gateway.model import ServedModel


def open_media(
    model: ServedModel, config: GatewayConfig, clock: Clock, processor: Processor | None
) -> tuple[MediaDesk | None, UploadShelf | None]:
    """The desk and the uploads of a model that takes media; (None, None) for another. `processor`: instead of the model's own."""
    if model.speech is not None:
        processor = processor or SpeechProcessor(model.speech.config, config.media, config.media_pool)
    elif model.media is not None:
        half = model.max_model_len // 2  # of a prompt may be one video: questions and answers take room, too
        processor = processor or PooledProcessor(model.media, config.media, config.media_pool, half)
    else:
        return None, None
    shelf = UploadShelf(processor, config.media, config.uploads, clock)
    keep = PixelKeep(config.max_media_bytes, config.spare_media_bytes, config.retry_after)
    return MediaDesk(processor, keep, shelf, config.max_media_bytes), shelf

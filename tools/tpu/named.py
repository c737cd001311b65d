"""What `--model` of a compile check names: only shapes are read, never weights.

llama-3.1-8b, qwen3-8b, smollm2-135m      text models at their published shapes
llava-1.5-7b, whisper-large-v3, ...       encoders at their published shapes (`models.py`)
dummy:NAME                                a preset of `models/config.py`
FOLDER                                    one with a config.json; of a vision-language model both halves
ORG/NAME                                  a repository on the Hugging Face hub, of which config.json alone is fetched (extra "hub")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.models.config import PRESETS, ModelConfig
from triptych.models.errors import UnsupportedModelError
from triptych.models.multimodal.hf_config import is_multimodal, multimodal_from_hf
from triptych.runtime.core.errors import ConfigError
from triptych.tools.tpu.models import PICTURE_SLOTS, PUBLISHED, TEXT, Published, PublishedVision

DUMMY = "dummy:"
Checked = ModelConfig | Published


def models_named(name: str, cache: Path) -> tuple[Checked, ...]:
    """The shapes that `name` stands for: a text decoder, an encoder, or both. Raises ConfigError if it stands for nothing."""
    if name in TEXT:
        return (TEXT[name],)
    if name in PUBLISHED:
        return (PUBLISHED[name],)
    if name.startswith(DUMMY) and name.removeprefix(DUMMY) in PRESETS:
        return (PRESETS[name.removeprefix(DUMMY)],)
    path = Path(name).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        return _from_json(path / "config.json", path.resolve().name)
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return _from_json(_fetched(name, cache), name)
    known = (*TEXT, *PUBLISHED, *(DUMMY + preset for preset in PRESETS))
    raise ConfigError(
        f"no model {name!r} to check: it is no folder with a config.json; other names are {', '.join(known)}, and hub repositories as ORG/NAME"
    )


def _from_json(path: Path, name: str) -> tuple[Checked, ...]:
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    try:
        if not is_multimodal(config):
            return (ModelConfig.from_hf(config),)
        both = multimodal_from_hf(config, None)
    except UnsupportedModelError as error:
        raise ConfigError(f"{name}: {error}") from error
    return both.text, PublishedVision(f"{name} (encoder)", both.vision, PICTURE_SLOTS)


def _fetched(repository: str, cache: Path) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            f"{repository!r} is no folder; to read its config.json from the Hugging Face hub: pip install 'triptych[hub]'"
        ) from None
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "config.json", cache_dir=cache / "hub"))
    except Exception as error:  # the client's own, its HTTP library's and the operating system's
        raise ConfigError(
            f"config.json of {repository!r} could not be fetched ({type(error).__name__}: {error}); pass a folder that holds it instead"
        ) from error

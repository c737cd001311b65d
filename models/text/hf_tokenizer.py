"""A tokenizer and chat template from a Hugging Face model folder, and back.

Read: `tokenizer.json` (the vocabulary), `tokenizer_config.json` (special tokens, chat template),
`generation_config.json` and `config.json` (ids that end a generation), `chat_template.jinja` (newer exports; wins over
the template in tokenizer_config.json).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from triptych.models.text.tokenizer import Tokenizer, UnsupportedTokenizerError

__all__ = ["chat_template_from_folder", "save_text_files", "tokenizer_from_folder"]


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Ids that end a generation: the tokenizer's own eos token first, then those of generation_config.json, or of
    config.json where that file is absent (an instruction-tuned model often ends a turn with another token than a
    document).

    Raises UnsupportedTokenizerError if there is no readable tokenizer.json or its kind is not supported.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedTokenizerError(
            f"{folder} has no tokenizer.json; if it has tokenizer.model or vocab.json and merges.txt, re-save it "
            "once with transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception for every malformed file
        raise UnsupportedTokenizerError(f"{path} is not a readable tokenizer.json: {error}") from error
    config = _read_json(folder / "tokenizer_config.json")
    bos, eos = _token_text(config.get("bos_token")), _token_text(config.get("eos_token"))
    eos_ids = [] if eos is None else [backend.token_to_id(eos)]
    generation = _read_json(folder / "generation_config.json") or _read_json(folder / "config.json")
    eos_ids += _as_list(generation.get("eos_token_id"))
    return Tokenizer(backend, eos_ids=[token for token in eos_ids if token is not None], bos_token=bos, eos_token=eos)


def chat_template_from_folder(folder: Path) -> str | None:
    """The folder's default chat template, or None for a base model."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates; the one called "default" is for plain chat
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def save_text_files(folder: Path, tokenizer: Tokenizer, chat_template: str | None) -> None:
    """Write the files that `tokenizer_from_folder` and `chat_template_from_folder` read, whatever the vocabulary came
    from.
    """
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    config = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": list(tokenizer.eos_ids)}), encoding="utf-8"
    )
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UnsupportedTokenizerError(f"{path} is not valid JSON: {error}") from error


def _token_text(entry: str | dict[str, Any] | None) -> str | None:
    """A special token is written as its text or as a serialised AddedToken."""
    return entry["content"] if isinstance(entry, dict) else entry


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]

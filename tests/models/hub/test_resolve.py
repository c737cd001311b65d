"""Model names, and the parts that each kind of model opens into."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.models.weights.tiny_gguf import hf_tensors, tiny_config, write_gguf
from triptych.models.config import PRESETS
from triptych.models.errors import UnsupportedModelError
from triptych.models.hub.bundle import open_model
from triptych.models.hub.errors import ModelFetchError, ModelNotFoundError
from triptych.models.hub.fingerprint import fingerprint_file
from triptych.models.hub.resolve import ModelKind, resolve_model
from triptych.models.text.hf_tokenizer import save_text_files
from triptych.models.text.toy import TOY_CHAT_TEMPLATE, toy_tokenizer
from triptych.models.weights.orbax import save_orbax

EVERYTHING = slice(None)


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    config = tiny_config()
    return write_gguf(tmp_path / "tiny.gguf", config, hf_tensors(config), metadata={"tokenizer.chat_template": "T"})


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 263,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(hf_tensors(tiny_config()), folder / "model.safetensors")
    save_text_files(folder, toy_tokenizer(), TOY_CHAT_TEMPLATE)
    return folder


def test_a_gguf_file_opens(gguf_file: Path, tmp_path: Path):
    resolved = resolve_model(str(gguf_file), tmp_path)
    assert (resolved.kind, resolved.name, resolved.path) == (ModelKind.GGUF, "tiny", gguf_file)
    bundle = open_model(resolved)
    assert bundle.tokenizer is not None and bundle.chat_template is not None
    assert bundle.config.eos_token_ids == bundle.tokenizer.eos_ids == (261,)
    assert bundle.chat_template.render([{"role": "user", "content": "x"}]) == "T"
    assert bundle.revision == resolved.revision


def test_a_hugging_face_folder_opens(hf_folder: Path, tmp_path: Path):
    resolved = resolve_model(str(hf_folder), tmp_path)
    bundle = open_model(resolved)
    assert resolved.kind is ModelKind.HF_FOLDER and bundle.config.eos_token_ids == (258, 256)
    np.testing.assert_array_equal(bundle.tensor_source.read("model.norm.weight", (EVERYTHING,)), np.ones(64))
    for name in ("tokenizer.json", "chat_template.jinja"):
        (hf_folder / name).unlink()
    plain = open_model(resolve_model(str(hf_folder), tmp_path))
    assert plain.tokenizer is None and plain.chat_template is None and plain.config.eos_token_ids == (258, 256)


def test_an_orbax_folder_opens_as_the_model_it_came_from(gguf_file: Path, tmp_path: Path):
    bundle = open_model(resolve_model(str(gguf_file), tmp_path))
    assert bundle.chat_template is not None
    template = bundle.chat_template.source
    save_orbax(
        tmp_path / "ckpt", bundle.config, bundle.tensor_source, tokenizer=bundle.tokenizer, chat_template=template
    )
    resolved = resolve_model(str(tmp_path / "ckpt"), tmp_path)
    again = open_model(resolved)
    assert resolved.kind is ModelKind.ORBAX and again.config == bundle.config
    assert again.tokenizer is not None and bundle.tokenizer is not None
    assert again.tokenizer.encode("hello 12<|im_end|>") == bundle.tokenizer.encode("hello 12<|im_end|>")
    name = "model.layers.0.self_attn.q_proj.weight"
    part = (slice(8, 24), EVERYTHING)
    np.testing.assert_array_equal(again.tensor_source.read(name, part), bundle.tensor_source.read(name, part))


def test_presets_open_and_the_toy_has_a_tokenizer(tmp_path: Path):
    toy = open_model(resolve_model("dummy:toy", tmp_path))
    assert toy.tokenizer is not None and toy.chat_template is not None
    assert toy.tokenizer.vocab_size == toy.config.vocab_size == 260 and toy.config == PRESETS["toy"]
    other = open_model(resolve_model("dummy:smollm2-135m", tmp_path))
    assert other.tokenizer is None and other.config == PRESETS["smollm2-135m"]
    assert toy.revision != other.revision


def test_revisions_follow_content_and_not_places(gguf_file: Path, hf_folder: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(gguf_file, moved / "other.gguf")
    shutil.copytree(hf_folder, moved / "copy")
    revision = {name: resolve_model(str(name), tmp_path).revision for name in (gguf_file, hf_folder)}
    assert resolve_model(str(moved / "other.gguf"), tmp_path).revision == revision[gguf_file]
    assert resolve_model(str(moved / "copy"), tmp_path).revision == revision[hf_folder]
    (moved / "copy" / "chat_template.jinja").write_text("changed")
    assert resolve_model(str(moved / "copy"), tmp_path).revision != revision[hf_folder]


def test_a_large_file_is_sampled_to_its_last_byte(tmp_path: Path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(130 << 20)
    before = fingerprint_file(path)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint_file(path) != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no model ''.*dummy:toy"),
        ("smolm2", "no model 'smolm2'.*'smollm2'.*ORG/NAME"),
        ("dummy:giant", "no preset 'giant'; presets are llama-8b"),
        ("./absent/folder", "it is no existing path"),
    ],
)
def test_unknown_names_list_what_is_known(tmp_path: Path, spec: str, message: str):
    with pytest.raises(ModelNotFoundError, match=message):
        resolve_model(spec, tmp_path)


def test_paths_that_hold_no_model_say_what_is_missing(gguf_file: Path, tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match=r"neither config\.json nor triptych\.json.*tiny\.gguf"):
        resolve_model(str(tmp_path), tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        resolve_model(str(tmp_path / "weights.bin"), tmp_path)


def test_a_hub_repository_needs_the_hub_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFetchError, match=r"triptych\[hub\]"):
        resolve_model("org/name", tmp_path)


def test_a_hub_repository_is_fetched_without_other_formats(
    hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Hub:
        @staticmethod
        def snapshot_download(repository: str, **options: object) -> str:
            if repository == "org/absent":
                raise OSError("404")
            assert options["allow_patterns"] == ["*.json", "*.safetensors", "*.jinja"]
            return str(hf_folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    resolved = resolve_model("org/name", tmp_path)
    assert (resolved.name, resolved.kind) == ("org/name", ModelKind.HF_FOLDER)
    with pytest.raises(ModelFetchError, match="404"):
        resolve_model("org/absent", tmp_path)


def test_a_tokenizer_larger_than_the_model_is_refused(hf_folder: Path, tmp_path: Path):
    config = json.loads((hf_folder / "config.json").read_text()) | {"vocab_size": 100}
    (hf_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="do not belong together"):
        open_model(resolve_model(str(hf_folder), tmp_path))


def test_opening_a_model_imports_no_jax(gguf_file: Path, hf_folder: Path):
    program = (
        "import sys; from pathlib import Path\n"
        "from triptych.models.hub.resolve import resolve_model; from triptych.models.hub.bundle import open_model\n"
        f"for spec in ({str(gguf_file)!r}, {str(hf_folder)!r}, 'dummy:toy'):\n"
        "    bundle = open_model(resolve_model(spec, Path('unused')))\n"
        "    bundle.tensor_source.read('model.norm.weight', (slice(None),))\n"
        "assert not {'jax', 'jaxlib', 'flax', 'orbax'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_the_text_side_needs_nothing_beyond_the_base_dependencies(gguf_file: Path, hf_folder: Path):
    program = (
        "import sys; from pathlib import Path\n"
        "extras = ('jax', 'flax', 'ml_dtypes', 'gguf', 'safetensors', 'tensorstore', 'orbax')\n"
        "sys.modules.update(dict.fromkeys(extras))\n"
        "from triptych.models.hub.resolve import resolve_model; from triptych.models.hub.text import open_text\n"
        "from triptych.models.text import chat, detokenizer, stop\n"
        f"for spec in ({str(gguf_file)!r}, {str(hf_folder)!r}, 'dummy:toy'):\n"
        "    assert open_text(resolve_model(spec, Path('unused'))).tokenizer.encode('hi')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)

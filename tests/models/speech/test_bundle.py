"""Whisper folders of both kinds open into the same model; what does not fit is refused and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.speech.tiny_ct2 import EVERYTHING, toy_tensors, write_folder
from tests.models.speech.toy import FOLDER, toy_backend, toy_config, toy_source
from triptych.models.errors import UnsupportedModelError, WeightsError
from triptych.models.hub.resolve import ModelKind, resolve_model
from triptych.models.hub.text import open_text
from triptych.models.speech.bundle import SpeechBundle, open_speech
from triptych.models.speech.config import WhisperConfig
from triptych.models.speech.load import load_decoder, load_encoder
from triptych.sharding.mesh import make_mesh

ENCODER_NORM = "model.encoder.layer_norm.weight"


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "hf"))
    (folder / "golden.npz").unlink()
    settings = {"is_multilingual": True, "suppress_tokens": [3, 4], "begin_suppress_tokens": [2, 60]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    toy_backend().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def ct2_folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "ct2")


def opened(folder: Path) -> SpeechBundle:
    return open_speech(resolve_model(str(folder), folder))


def change(folder: Path, tensors: dict[str, np.ndarray | None]) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in (stored | tensors).items() if v is not None}, folder / "model.safetensors")


def load(bundle: SpeechBundle, tp: int = 1) -> tuple:
    mesh = make_mesh(jax.devices()[:tp], tp)
    halves = [load(bundle.config, bundle.tensor_source, mesh, "float32") for load in (load_encoder, load_decoder)]
    return tuple(loaded.params for loaded in halves)


@pytest.mark.parametrize("tp", [1, 2])
def test_both_kinds_hold_the_same_model(hf_folder: Path, ct2_folder: Path, tp: int) -> None:
    hf, ct2 = opened(hf_folder), opened(ct2_folder)
    assert hf.config.fingerprint() == ct2.config.fingerprint() == toy_config().fingerprint()
    assert (hf.config.name, ct2.config.name) == ("hf", "ct2") and hf.revision != ct2.revision
    assert hf.tokens.suppressed == ct2.tokens.suppressed and len(hf.tokens.prompt("de")) == 4
    assert ct2.tokens.prompt() == (61, 69)  # the small vocabulary and no word about languages: English only
    jax.tree.map(np.testing.assert_array_equal, load(hf, tp), load(ct2, tp))


def test_a_ctranslate2_source_has_every_tensor_of_the_checkpoint(ct2_folder: Path) -> None:
    source, checkpoint = opened(ct2_folder).tensor_source, toy_source()
    extra = set(source.names()) - set(checkpoint.names())
    assert set(checkpoint.names()) <= set(source.names())
    assert extra and all(name.endswith("k_proj.bias") for name in extra)
    for name in checkpoint.names():
        whole = (EVERYTHING,) * len(checkpoint.shape(name))
        np.testing.assert_array_equal(source.read(name, whole), checkpoint.read(name, whole))
    name = "model.decoder.layers.1.encoder_attn.v_proj.weight"
    part = (slice(3, 9), slice(2, 5))
    np.testing.assert_array_equal(source.read(name, part), checkpoint.read(name, part))


def test_half_precision_is_read_and_quantised_weights_are_refused(tmp_path: Path) -> None:
    half = {
        name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in toy_tensors().items()
    }
    encoder, _ = load(opened(write_folder(tmp_path / "half", half)))
    assert {array.dtype.name for array in encoder} == {"float32"}
    name = "encoder/layer_0/ffn/linear_0/weight"
    quantised = half | {name: np.zeros((45, 24), np.int8)}
    with pytest.raises(WeightsError, match=f"{name}.*quantised"):
        opened(write_folder(tmp_path / "int8", quantised))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("decoder/activation", 0, "decoder/activation is 0; supported: 3"),
        ("decoder/pre_norm", 0, "pre_norm is 0"),
        ("decoder/num_heads", 4, "equally many heads"),
    ],
)
def test_ctranslate2_models_that_compute_something_else_are_refused(
    tmp_path: Path, setting: str, value: int, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        opened(write_folder(tmp_path / "other", toy_tensors() | {setting: np.array(value, np.int8)}))


def test_missing_unexpected_and_misshapen_tensors_are_named(hf_folder: Path) -> None:
    norm = np.ones(24, np.float32)
    change(hf_folder, {"proj_out.weight": np.zeros((81, 24), np.float32)})
    load(opened(hf_folder))  # a stored copy of the tied head
    change(hf_folder, {ENCODER_NORM: norm[:-1].copy()})
    with pytest.raises(WeightsError, match=rf"{ENCODER_NORM}.*\(23,\).*\(24,\)"):
        load(opened(hf_folder))
    change(hf_folder, {ENCODER_NORM: None})
    with pytest.raises(WeightsError, match=f"tensors of the encoder are missing.*{ENCODER_NORM}"):
        load(opened(hf_folder))
    change(hf_folder, {ENCODER_NORM: norm, "model.decoder.layers.2.fc1.weight": norm})
    with pytest.raises(WeightsError, match=r"layers\.2"):
        load(opened(hf_folder))


def test_each_half_reads_its_own_tensors_only(hf_folder: Path) -> None:
    encoder_only: dict[str, np.ndarray | None] = {
        name: None for name in load_file(hf_folder / "model.safetensors") if ".decoder." in name
    }
    change(hf_folder, encoder_only)
    bundle, mesh = opened(hf_folder), make_mesh(jax.devices()[:1], 1)
    load_encoder(bundle.config, bundle.tensor_source, mesh, "float32")
    with pytest.raises(WeightsError, match="of the decoder are missing"):
        load_decoder(bundle.config, bundle.tensor_source, mesh, "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}, "Wav2Vec2ForCTC is not supported"),
        ({"d_model": None}, "lacks d_model"),
        ({"activation_function": "relu"}, "'relu'"),
        ({"scale_embedding": True}, "scaled token embeddings"),
        ({"tie_word_embeddings": False}, "tied embeddings"),
        ({"decoder_ffn_dim": 46}, "encoder_ffn_dim 45 and decoder_ffn_dim 46"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "does not divide among 5"),
    ],
)
def test_configurations_that_would_be_computed_wrongly_are_refused(change: dict, message: str) -> None:
    config = json.loads((FOLDER / "config.json").read_text()) | change
    with pytest.raises(UnsupportedModelError, match=message):
        WhisperConfig.from_hf(config)


def test_a_tokenizer_of_another_model_is_refused(hf_folder: Path) -> None:
    backend = toy_backend()
    backend.add_tokens([f"word{at}" for at in range(30)])
    backend.save(str(hf_folder / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="do not belong together"):
        opened(hf_folder)


def test_a_text_model_is_no_speech_model_and_the_other_way_round(ct2_folder: Path, tmp_path: Path) -> None:
    resolved = resolve_model(str(ct2_folder), tmp_path)
    assert resolved.kind is ModelKind.CT2
    with pytest.raises(UnsupportedModelError, match="read for speech only"):
        open_text(resolved)
    with pytest.raises(UnsupportedModelError, match="'dummy:toy' is no speech model"):
        open_speech(resolve_model("dummy:toy", tmp_path))
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM is not supported"):
        open_speech(resolve_model(str(FOLDER.parent / "llama2"), tmp_path))


def test_opening_a_speech_model_imports_no_jax(hf_folder: Path, ct2_folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from triptych.models.hub.resolve import resolve_model; from triptych.models.speech.bundle import open_speech\n"
        "from triptych.models.speech.kv import whisper_kv_groups; import triptych.models.speech.windows\n"
        f"for spec in ({str(hf_folder)!r}, {str(ct2_folder)!r}):\n"
        "    bundle = open_speech(resolve_model(spec, Path('unused')))\n"
        f"    bundle.tensor_source.read({ENCODER_NORM!r}, (slice(None),))\n"
        "    whisper_kv_groups(bundle.config, 'float32')\n"
        "assert not {'jax', 'jaxlib', 'flax', 'orbax'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)

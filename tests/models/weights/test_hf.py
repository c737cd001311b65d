"""Reading Hugging Face folders: slices, dtypes, sharded files, and every way in which a file can be broken."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from triptych.models.errors import WeightsError
from triptych.models.weights.hf import open_hf_folder, read_hf_config
from triptych.models.weights.load import load_decoder
from triptych.sharding.mesh import make_mesh

GOLDENS = Path(__file__).parent.parent / "goldens"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDENS / "rope_linear", tmp_path / "model"))


def change(folder: Path, tensors: dict[str, np.ndarray | None]) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in (stored | tensors).items() if value is not None}, folder / "model.safetensors"
    )


def load(folder: Path) -> None:
    load_decoder(read_hf_config(folder), open_hf_folder(folder), make_mesh(jax.devices()[:1], 1), "float32")


def test_slices_are_those_of_the_file(folder: Path) -> None:
    source, stored = open_hf_folder(folder), load_file(folder / "model.safetensors")
    assert set(source.names()) == set(stored)
    assert source.shape(NAME) == stored[NAME].shape
    np.testing.assert_array_equal(source.read(NAME, (slice(3, 9), slice(2, 5))), stored[NAME][3:9, 2:5])


def test_a_sharded_index_reads_like_one_file() -> None:
    source = open_hf_folder(GOLDENS / "llama3")
    assert len(list((GOLDENS / "llama3").glob("*.safetensors"))) > 1
    index = json.loads((GOLDENS / "llama3" / "model.safetensors.index.json").read_text())
    assert set(source.names()) == set(index["weight_map"])


def test_missing_unexpected_and_misshapen_tensors_are_named(folder: Path) -> None:
    weight = load_file(folder / "model.safetensors")[NAME]
    change(folder, {NAME: weight[:-1].copy()})
    with pytest.raises(WeightsError, match=rf"{NAME}.*\(95, 48\).*\(96, 48\)"):
        load(folder)
    change(folder, {NAME: None})
    with pytest.raises(WeightsError, match=f"missing.*{NAME}"):
        load(folder)
    change(folder, {NAME: weight, "model.layers.0.mlp.router.weight": weight})
    with pytest.raises(WeightsError, match="router"):
        load(folder)


def test_a_tied_model_ignores_a_stored_copy_of_its_head(folder: Path) -> None:
    change(
        folder, {"lm_head.weight": np.zeros((256, 48), np.float32), "model.rotary_emb.inv_freq": np.ones(6, np.float32)}
    )
    load(folder)


def test_unsupported_dtypes_are_named(folder: Path) -> None:
    change(folder, {NAME: np.zeros((96, 48), np.int8)})
    with pytest.raises(WeightsError, match="I8.*supported: F32, F16, BF16"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 60_000])
def test_a_cut_off_file_is_an_error_before_anything_is_placed(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_hf_folder(folder)


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}']
)
def test_a_broken_header_is_an_error(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        open_hf_folder(folder)


def test_folders_without_weights_config_or_sane_index_are_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    with pytest.raises(WeightsError, match="same folder"):
        open_hf_folder(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="neither"):
        open_hf_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        read_hf_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        read_hf_config(folder)

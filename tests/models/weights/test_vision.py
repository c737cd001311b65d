"""Encoders and decoders out of one vision-language checkpoint: each loads its own tensors, whatever they are called."""

from collections.abc import Collection

import jax
import numpy as np
import pytest

from triptych.models.config import PRESETS
from triptych.models.errors import WeightsError
from triptych.models.multimodal.presets import VLM_PRESETS
from triptych.models.vision.packing import Grid, Piece, pack
from triptych.models.vision.structure import encoder_structure
from triptych.models.weights.dummy import DummySource
from triptych.models.weights.load import load_decoder
from triptych.models.weights.multimodal import text_source
from triptych.models.weights.views import View, ViewSource, flattened
from triptych.models.weights.vision import dummy_encoder, load_encoder, tensor_shapes
from triptych.sharding.mesh import make_mesh
from triptych.sharding.rules import ShardingRules

VISION = VLM_PRESETS["toy-vlm"].vision
ALL = slice(None)


class Tensors:
    """A source over a dictionary that remembers what was read."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        self.was_read: set[str] = set()

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str, slices: tuple[slice, ...]) -> np.ndarray:
        self.was_read.add(name)
        return self.tensors[name][slices]


def llava(vision: str, text: str, head: str) -> Tensors:
    """A toy LLaVA's tensors under these prefixes, with what a published checkpoint has besides."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    layer = {"layer_norm1": (32,), "layer_norm2": (32,), "mlp.fc1": (64, 32), "mlp.fc2": (32, 64)}
    layer |= {f"self_attn.{name}_proj": (32, 32) for name in ("q", "k", "v", "out")}
    modules = {f"{vision}encoder.layers.{index}.{name}": shape for index in range(2) for name, shape in layer.items()}
    modules |= {f"{vision}{name}": (32,) for name in ("pre_layrnorm", "post_layernorm")}
    modules |= {"multi_modal_projector.linear_1": (64, 32), "multi_modal_projector.linear_2": (64, 64)}
    for name, shape in modules.items():
        tensors[f"{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.standard_normal(shape[:1]).astype(np.float32)
    tensors[f"{vision}embeddings.patch_embedding.weight"] = rng.standard_normal((32, 3, 4, 4)).astype(np.float32)
    tensors[f"{vision}embeddings.class_embedding"] = rng.standard_normal(32).astype(np.float32)
    tensors[f"{vision}embeddings.position_embedding.weight"] = rng.standard_normal((17, 32)).astype(np.float32)
    tensors[f"{vision}embeddings.position_ids"] = np.arange(17)[None]
    decoder = DummySource(PRESETS["toy"])
    for name in decoder.names():
        array = decoder.read(name, (ALL,) * len(decoder.shape(name)))
        tensors[text + name.removeprefix("model.")] = np.asarray(array)
    tensors[head + "lm_head.weight"] = np.zeros((260, 64), np.float32)
    return Tensors(tensors)


LAYOUTS = (
    ("vision_tower.vision_model.", "language_model.model.", "language_model."),
    ("model.vision_tower.", "model.language_model.", ""),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_side_reads_only_its_own_tensors(layout: tuple[str, str, str]) -> None:
    source = llava(*layout)
    mesh = make_mesh(jax.devices()[:1], 1)
    encoder = load_encoder(VISION, source, mesh, "float32")
    assert sum(array.size for array in encoder.params) == VISION.parameter_count()
    assert not any("language_model" in name or "lm_head" in name for name in source.was_read)
    assert not any("post_layernorm" in name for name in source.was_read)
    by_path = dict(zip(encoder.structure.paths, encoder.params, strict=True))
    stored = source.tensors[f"{layout[0]}encoder.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(np.asarray(by_path["layers.1.attention.qkv.weight"])[:, 32:64], stored.T)

    source.was_read.clear()
    decoder = load_decoder(PRESETS["toy"], text_source(source), mesh, "float32")
    assert sum(array.size for array in decoder.params) == PRESETS["toy"].parameter_count()
    assert all(name.startswith(layout[1]) for name in source.was_read)


def test_tensors_that_are_missing_unknown_or_misshapen_are_named() -> None:
    mesh = make_mesh(jax.devices()[:1], 1)
    prefix = LAYOUTS[0][0]
    lacking = llava(*LAYOUTS[0])
    del lacking.tensors[f"{prefix}encoder.layers.1.mlp.fc2.bias"]
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.fc2\.bias' is missing"):
        load_encoder(VISION, lacking, mesh, "float32")
    more = llava(*LAYOUTS[0])
    more.tensors[f"{prefix}encoder.layers.0.gamma"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError, match="gamma"):
        load_encoder(VISION, more, mesh, "float32")
    other = llava(*LAYOUTS[0])
    other.tensors["multi_modal_projector.linear_1.weight"] = np.zeros((64, 40), np.float32)
    with pytest.raises(WeightsError, match=r"\(64, 40\)"):
        load_encoder(VISION, other, mesh, "float32")
    with pytest.raises(WeightsError, match="0 tensors are called"):
        load_encoder(VISION, Tensors({}), mesh, "float32")
    with pytest.raises(WeightsError, match="0 tensors are called"):
        text_source(Tensors({}))


@pytest.mark.parametrize("tp", [2, 4])
def test_random_encoders_have_the_same_numbers_on_every_mesh(tp: int) -> None:
    one = dummy_encoder(VISION, make_mesh(jax.devices()[:1], 1), "float32")
    several = dummy_encoder(VISION, make_mesh(jax.devices()[:tp], tp), "float32")
    paths = one.structure.paths
    assert paths == several.structure.paths
    for path, whole, split in zip(paths, one.params, several.params, strict=True):
        if "qkv" not in path:
            np.testing.assert_array_equal(whole, split, err_msg=path)
    assert several.nbytes() < tp * one.nbytes()


def test_bfloat16_encoders_give_bfloat16_rows_near_those_of_float32() -> None:
    mesh = make_mesh(jax.devices()[:1], 1)
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (16, VISION.patch_dim), dtype=np.uint8)
    packed, _ = pack([Piece(patches, Grid(4, 4))], VISION, 24)
    rows = {}
    for dtype in ("float32", "bfloat16"):
        encoder = dummy_encoder(VISION, mesh, dtype)
        rows[dtype] = jax.jit(lambda params, packed, encoder=encoder: encoder.merge(params)(packed))(
            encoder.params, packed
        )
        assert rows[dtype].dtype == dtype
    exact, rough = (np.asarray(rows[dtype], np.float32)[:16] for dtype in ("float32", "bfloat16"))
    # Eight bits of mantissa through two layers, at rows of unit size.
    assert 0 < np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()


def test_shapes_of_tensors_do_not_depend_on_padding() -> None:
    shapes = [
        tensor_shapes(encoder_structure(VISION, ShardingRules(make_mesh(jax.devices()[:tp], tp)), "float32"))
        for tp in (1, 3)
    ]
    assert shapes[0] == shapes[1]


def test_views_cut_rows_and_flatten_axes() -> None:
    array = np.arange(48).reshape(6, 2, 4)
    source = Tensors({"a": array})
    views = ViewSource(source, {"rows": View("a", rows=(2, 4)), "flat": View("a", rows=(3, 6), shape=(3, 8))})
    assert views.shape("rows") == (2, 2, 4)
    np.testing.assert_array_equal(views.read("rows", (slice(1, 2), ALL, slice(0, 3))), array[3:4, :, :3])
    np.testing.assert_array_equal(views.read("rows", (ALL, ALL, ALL)), array[2:4])
    np.testing.assert_array_equal(views.read("flat", (slice(1, 3), slice(2, 5))), array[3:].reshape(3, 8)[1:3, 2:5])
    assert flattened((1, 1, 5), 1) == (5,)
    assert flattened((1, 7, 5), 2) == (7, 5)
    assert flattened((8, 3, 2, 2), 2) == (8, 12)

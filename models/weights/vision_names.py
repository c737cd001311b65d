"""What checkpoints call the tensors of a vision encoder and its connector, by family.

The loader's own names are those of the parameters ("layers.0.attention.q.weight"); `encoder_source` finds each of them in
a checkpoint, wherever it has the encoder: as a model of its own, or under a prefix inside a vision-language model. Both
the names that were published and those of newer versions of the transformers library are known.
"""

from collections.abc import Iterator, Mapping, Sequence

from triptych.models.errors import WeightsError
from triptych.models.vision.config import Family, VisionConfig
from triptych.models.weights.source import TensorSource
from triptych.models.weights.views import View, ViewSource, flattened

# Module -> its names in checkpoints, any of which may be used.
_Names = Mapping[str, tuple[str, ...]]

_CLIP_LAYER: _Names = {
    "attention_norm": ("layer_norm1",),
    "attention.q": ("self_attn.q_proj",),
    "attention.k": ("self_attn.k_proj",),
    "attention.v": ("self_attn.v_proj",),
    "attention.o": ("self_attn.out_proj",),
    "ffn_norm": ("layer_norm2",),
    "ffn.up": ("mlp.fc1",),
    "ffn.down": ("mlp.fc2",),
}
_DINOV2_LAYER: _Names = {
    "attention_norm": ("norm1",),
    "attention.q": ("attention.attention.query", "attention.q_proj"),
    "attention.k": ("attention.attention.key", "attention.k_proj"),
    "attention.v": ("attention.attention.value", "attention.v_proj"),
    "attention.o": ("attention.output.dense", "attention.o_proj"),
    "attention_scale": ("layer_scale1",),
    "ffn_norm": ("norm2",),
    "ffn.up": ("mlp.fc1",),
    "ffn.down": ("mlp.fc2",),
    "ffn_scale": ("layer_scale2",),
}
# DINOv2's gated variant: gate and up may be one tensor, gate first.
_SWIGLU: _Names = {
    "ffn.gate": ("mlp.weights_in", "mlp.gate_proj"),
    "ffn.up": ("mlp.weights_in", "mlp.up_proj"),
    "ffn.down": ("mlp.weights_out", "mlp.down_proj"),
}
_INTERNVIT_LAYER: _Names = {
    "attention_norm": ("layernorm_before",),
    "attention.q": ("attention.q_proj",),
    "attention.k": ("attention.k_proj",),
    "attention.v": ("attention.v_proj",),
    "attention.o": ("attention.projection_layer",),
    "attention_scale": ("lambda_1",),
    "ffn_norm": ("layernorm_after",),
    "ffn.up": ("mlp.fc1",),
    "ffn.down": ("mlp.fc2",),
    "ffn_scale": ("lambda_2",),
}
_QWEN_LAYER: _Names = {
    "attention_norm": ("norm1",),
    "attention.q": ("attn.qkv",),
    "attention.k": ("attn.qkv",),
    "attention.v": ("attn.qkv",),
    "attention.o": ("attn.proj",),
    "ffn_norm": ("norm2",),
    "ffn.gate": ("mlp.gate_proj",),
    "ffn.up": ("mlp.up_proj",),
    "ffn.down": ("mlp.down_proj",),
}
_CLIP: _Names = {
    "patch": ("embeddings.patch_embedding",),
    "class_token": ("embeddings.class_embedding",),
    "positions": ("embeddings.position_embedding.weight",),
    "pre_norm": ("pre_layrnorm",),
    "final_norm": ("post_layernorm",),
}
_DINOV2: _Names = {
    "patch": ("embeddings.patch_embeddings.projection",),
    "class_token": ("embeddings.cls_token",),
    "positions": ("embeddings.position_embeddings",),
    "final_norm": ("layernorm",),
}
_PROJECTOR: _Names = {
    "connector.merged_norm": ("multi_modal_projector.layer_norm",),
    "connector.first": ("multi_modal_projector.linear_1",),
    "connector.second": ("multi_modal_projector.linear_2",),
}
_MERGER: _Names = {
    "patch": ("patch_embed.proj",),
    "connector.patch_norm": ("merger.ln_q",),
    "connector.first": ("merger.mlp.0",),
    "connector.second": ("merger.mlp.2",),
}

# Family -> what is outside the layers, how a layer's names begin, what is inside it.
_FAMILIES: Mapping[Family, tuple[_Names, str, _Names]] = {
    "clip": (_CLIP, "encoder.layers.", _CLIP_LAYER),
    "siglip": (_CLIP, "encoder.layers.", _CLIP_LAYER),
    "dinov2": (_DINOV2, "encoder.layer.", _DINOV2_LAYER),
    "internvit": (_DINOV2, "encoder.layer.", _INTERNVIT_LAYER),
    "qwen2_5_vl": (_MERGER, "blocks.", _QWEN_LAYER),
}

# Tensors beside the parameters that have no part in what is computed here: a pooling head, what training masked with,
# a buffer, the norm after layers that are not run.
_UNUSED = ("head.", "embeddings.mask_token", "embeddings.position_ids", "post_layernorm.", "layernorm.")

# Modules whose tensor is named without ".weight", and those that have one tensor of factors.
_BARE = ("class_token", "positions")
_FACTORS = {"layer_scale1": "layer_scale1.lambda1", "layer_scale2": "layer_scale2.lambda1"}


def encoder_source(source: TensorSource, config: VisionConfig, wanted: Sequence[str]) -> TensorSource:
    """The tensors that `wanted` names (canonical names, as `vision_parts` gives them), found in a checkpoint.

    Raises WeightsError if one is missing, or the encoder has tensors that the configuration does not describe.
    """
    stored = set(source.names())
    prefix = _prefix(stored, f"{_FAMILIES[config.family][0]['patch'][0]}.weight")
    projector = ""
    if config.connector is not None and config.family != "qwen2_5_vl":
        projector = _prefix(stored, f"{_PROJECTOR['connector.first'][0]}.weight")
    views: dict[str, View] = {}
    for name in wanted:
        start = projector if name.startswith("connector.") and config.family != "qwen2_5_vl" else prefix
        found = [start + candidate for candidate in _candidates(name, config) if start + candidate in stored]
        if not found:
            raise WeightsError(
                f"the vision encoder's tensor {start + next(_candidates(name, config))!r} is missing; "
                f"the file has {len(stored)} tensors"
            )
        views[name] = _view(name, found[0], source, config)
    if prefix:
        _refuse_unknown(stored, prefix, {view.name for view in views.values()}, config)
    return ViewSource(source, views)


def _prefix(stored: set[str], anchor: str) -> str:
    """What stands before the encoder's own names, from a tensor that every encoder of the family has once."""
    found = [name for name in stored if name == anchor or name.endswith("." + anchor)]
    if len(found) != 1:
        raise WeightsError(f"{len(found)} tensors are called {anchor!r}; one is needed to find the vision encoder by")
    return found[0].removesuffix(anchor)


def _candidates(name: str, config: VisionConfig) -> Iterator[str]:
    outside, layer_prefix, inside = _FAMILIES[config.family]
    if name in _BARE:
        yield from outside[name]
        return
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        names = outside if module in outside else _PROJECTOR
        for candidate in names[module]:
            yield f"{candidate}.{kind}"
        return
    _, index, module = module.split(".", 2)
    swiglu = config.family == "dinov2" and config.gated
    for candidate in _SWIGLU[module] if swiglu and module in _SWIGLU else inside[module]:
        candidate = _FACTORS.get(candidate, candidate)
        bare = module.endswith("_scale")
        yield f"{layer_prefix}{index}.{candidate}" + ("" if bare else f".{kind}")


def _view(name: str, stored: str, source: TensorSource, config: VisionConfig) -> View:
    if name in ("class_token", "positions", "patch.weight"):
        return View(stored, shape=flattened(tuple(source.shape(stored)), 1 if name == "class_token" else 2))
    words = name.split(".")
    if stored.endswith(("attn.qkv.weight", "attn.qkv.bias")):
        at = "qkv".index(words[-2]) * config.hidden_size
        return View(stored, rows=(at, at + config.hidden_size))
    if ".mlp.weights_in." in stored:
        at = ("gate", "up").index(words[-2]) * config.intermediate_size
        return View(stored, rows=(at, at + config.intermediate_size))
    return View(stored)


def _refuse_unknown(stored: set[str], prefix: str, used: set[str], config: VisionConfig) -> None:
    layer_prefix = prefix + _FAMILIES[config.family][1]
    for name in sorted(stored - used):
        if not name.startswith(prefix) or name.removeprefix(prefix).startswith(_UNUSED):
            continue
        index = name.removeprefix(layer_prefix).partition(".")[0]
        if name.startswith(layer_prefix) and index.isdecimal() and config.num_layers <= int(index):
            continue
        raise WeightsError(
            f"tensor {name!r} belongs to no parameter of the {config.family} encoder; "
            "the model has parts that its configuration does not describe"
        )

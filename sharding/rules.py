"""Which logical axis lies on which mesh axis: one table, and the shardings that follow from it.

Code names what an axis *is* ("heads", "ffn"); the table says where it goes. The pattern is Megatron's: the first matrix
of a block is split by output rows, the second by input columns, so each block needs one all-reduce.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from triptych.sharding.mesh import TP

LogicalAxis = Literal[
    "vocab",
    "hidden",
    "heads",
    "kv_heads",
    "qkv",
    "kv",
    "ffn",
    "gate_up",
    "head_dim",
    "pages",
    "page",
    "tokens",
    "patch",
    "places",
    "features",
    "positions",
    "mels",
    "kernel",
]

RULES: dict[LogicalAxis, str | None] = {
    "vocab": TP,
    "hidden": None,
    "heads": TP,
    "kv_heads": TP,
    "qkv": TP,
    "kv": TP,
    "ffn": TP,
    "gate_up": TP,
    "head_dim": None,
    "pages": None,
    "page": None,
    "tokens": None,
    # Of vision encoders: a patch's pixels, entries of a position table, and every size inside the connector.
    "patch": None,
    "places": None,
    "features": None,
    "positions": None,
    "mels": None,
    "kernel": None,
}
assert set(RULES) == set(get_args(LogicalAxis))

# Axes on which several lie: each device's run of the axis is its own run of the first, then of the second, and so on.
FUSED_AXES: dict[LogicalAxis, tuple[LogicalAxis, ...]] = {
    "qkv": ("heads", "kv_heads", "kv_heads"),
    "kv": ("kv_heads", "kv_heads"),
    "gate_up": ("ffn", "ffn"),
}

# The last two words of a parameter's path -> the logical axes of its weight or bias.
PARAMETER_AXES: dict[str, tuple[LogicalAxis, ...]] = {
    "embedding.weight": ("vocab", "hidden"),
    "lm_head.weight": ("vocab", "hidden"),
    "norm.weight": ("hidden",),
    "attention_norm.weight": ("hidden",),
    "ffn_norm.weight": ("hidden",),
    "q_norm.weight": ("head_dim",),
    "k_norm.weight": ("head_dim",),
    "qkv.weight": ("hidden", "qkv"),
    "o.weight": ("hidden", "heads"),
    "qkv.bias": ("qkv",),
    "o.bias": ("hidden",),
    "gate_up.weight": ("hidden", "gate_up"),
    "down.weight": ("hidden", "ffn"),
    "gate_up.bias": ("gate_up",),
    "down.bias": ("hidden",),
    "norm.bias": ("hidden",),
    "attention_norm.bias": ("hidden",),
    "ffn_norm.bias": ("hidden",),
    "up.weight": ("ffn", "hidden"),
    "up.bias": ("ffn",),
    "patch.weight": ("hidden", "patch"),
    "patch.bias": ("hidden",),
    "class_token": ("hidden",),
    "positions": ("places", "hidden"),
    "pre_norm.weight": ("hidden",),
    "pre_norm.bias": ("hidden",),
    "final_norm.weight": ("hidden",),
    "final_norm.bias": ("hidden",),
    "attention_scale.weight": ("hidden",),
    "ffn_scale.weight": ("hidden",),
    "patch_norm.weight": ("features",),
    "patch_norm.bias": ("features",),
    "merged_norm.weight": ("features",),
    "merged_norm.bias": ("features",),
    "first.weight": ("features", "features"),
    "first.bias": ("features",),
    "second.weight": ("features", "features"),
    "second.bias": ("features",),
    # Whisper (models/speech): layer norms have biases, cross-attention has queries apart from keys and values, the FFN no
    # gate. The convolutions are small and stay whole.
    "cross_norm.weight": ("hidden",),
    "cross_norm.bias": ("hidden",),
    "q.weight": ("heads", "hidden"),
    "q.bias": ("heads",),
    "kv.weight": ("hidden", "kv"),
    "kv.bias": ("kv",),
    "positions.weight": ("positions", "hidden"),
    "conv1.weight": ("hidden", "mels", "kernel"),
    "conv1.bias": ("hidden",),
    "conv2.weight": ("hidden", "hidden", "kernel"),
    "conv2.bias": ("hidden",),
}

POOL_AXES: tuple[LogicalAxis, ...] = ("pages", "page", "kv_heads", "head_dim")


# Arrays of a quantised weight ("layers.3.attention.qkv.weight.codes"; models/quantised.py): which of outputs and inputs they have.
_QUANTISED = {"codes": 2, "packed": 2, "scale": 1, "scales": 2}


def parameter_axes(path: str) -> tuple[LogicalAxis, ...]:
    """Logical axes of the parameter at a dotted path such as "layers.3.attention.qkv.weight"."""
    words = path.split(".")
    if words[-1] not in _QUANTISED:
        return PARAMETER_AXES[".".join(words[-2:])]
    axes = PARAMETER_AXES[".".join(words[-3:-1])]
    # Quantised weights are [out, in]; of others only fused ones are not.
    return (axes[::-1] if axes[1] in FUSED_AXES else axes)[: _QUANTISED[words[-1]]]


@dataclass(frozen=True)
class ShardingRules:
    """The table applied to one mesh. Hashable, so that a module definition can carry it as a static field."""

    mesh: Mesh

    @property
    def tp(self) -> int:
        return self.mesh.shape[TP]

    def sharding(self, *axes: LogicalAxis) -> NamedSharding:
        """Where an array with these axes lies; no axes means replicated."""
        return NamedSharding(self.mesh, PartitionSpec(*(RULES[axis] for axis in axes)))

    def parameter(self, path: str) -> NamedSharding:
        """Where the parameter at this path lies."""
        return self.sharding(*parameter_axes(path))

    def pool(self) -> NamedSharding:
        """Where a KV page pool [pages, page_size, kv_heads, head_dim] lies."""
        return self.sharding(*POOL_AXES)

    def replicated(self) -> NamedSharding:
        """Where small inputs (token ids, tables, lengths) lie."""
        return NamedSharding(self.mesh, PartitionSpec())

    def constrain(self, array: jax.Array, *axes: LogicalAxis) -> jax.Array:
        """Inside a traced program: pin an intermediate to where its axes belong."""
        if self.tp == 1:
            return array
        return jax.lax.with_sharding_constraint(array, self.sharding(*axes))

"""What a decoder is, as data: one frozen, hashable `ModelConfig` for every supported dense decoder family.

No JAX here: schedulers, gateways and planners read configurations on machines without devices. A family is a set of
switches (biases, per-head norms, windows, rope scaling), never a class of its own; `models/decoder.py` has the one
definition.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from triptych.models.errors import UnsupportedModelError
from triptych.models.rope_config import Llama3Scaling, RopeConfig

PLAIN_ROPE = RopeConfig()

_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder. Sizes are logical ones, before any padding for tensor parallelism (`sharding/heads.py`)."""

    name: str
    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    layer_windows: tuple[int | None, ...]
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = PLAIN_ROPE
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"architecture {self.architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
            )
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"{self.num_heads} query heads do not divide among {self.num_kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"head_dim {self.head_dim} is odd; rotary embedding rotates pairs")
        if len(self.layer_windows) != self.num_layers:
            raise UnsupportedModelError(
                f"{len(self.layer_windows)} layer windows for {self.num_layers} layers; one entry a layer is needed"
            )

    @property
    def model_type(self) -> str:
        """The family's short name in Hugging Face configurations, e.g. "llama"."""
        return self.architecture.removesuffix("ForCausalLM").lower()

    def fingerprint(self) -> str:
        """Hex digest of every field that changes what is computed (not names, special tokens or the length limit)."""
        fields = asdict(self)
        for irrelevant in ("name", "eos_token_ids", "bos_token_id", "pad_token_id", "max_position"):
            del fields[irrelevant]
        fields["rope"] = repr(self.rope)
        return hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:32]

    def parameter_count(self) -> int:
        """Number of stored weights, without padding."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        attention += self.qkv_bias * self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        attention += self.o_bias * self.hidden_size + self.qk_norm * 2 * self.head_dim
        ffn = 3 * self.hidden_size * self.intermediate_size
        ffn += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return embeddings + self.hidden_size + self.num_layers * (attention + ffn + 2 * self.hidden_size)

    @staticmethod
    def from_hf(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None) -> "ModelConfig":
        """From the parsed `config.json` and `generation_config.json` of a Hugging Face folder (transformers 4 and 5).

        End-of-sequence ids come from the generation config when it has any, because chat models end turns there.
        Raises UnsupportedModelError, with what is supported, for anything that would be computed wrongly.
        """
        architecture = _architecture(config)
        _refuse_unsupported(config)
        absent = [key for key in _REQUIRED if not config.get(key)]
        if absent:
            raise UnsupportedModelError(f"the configuration lacks {', '.join(absent)}")
        heads = int(config["num_attention_heads"])
        layers = int(config["num_hidden_layers"])
        generation = generation_config or {}
        attention_bias = bool(config.get("attention_bias", False))
        qwen2 = architecture == "Qwen2ForCausalLM"
        return ModelConfig(
            name=str(config.get("_name_or_path") or config.get("model_type") or architecture),
            architecture=architecture,
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            intermediate_size=int(config["intermediate_size"]),
            max_position=int(config.get("max_position_embeddings") or 2048),
            layer_windows=_layer_windows(config, architecture, layers),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=RopeConfig.from_hf(config),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=qwen2 or attention_bias,
            o_bias=attention_bias and not qwen2,
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=architecture == "Qwen3ForCausalLM",
            eos_token_ids=_token_ids(generation.get("eos_token_id"), config.get("eos_token_id")),
            bos_token_id=_first_token_id(generation.get("bos_token_id"), config.get("bos_token_id")),
            pad_token_id=_first_token_id(generation.get("pad_token_id"), config.get("pad_token_id")),
        )


def _architecture(config: Mapping[str, Any]) -> str:
    named = list(config.get("architectures") or [])
    by_type = {name.removesuffix("ForCausalLM").lower(): name for name in ARCHITECTURES}
    architecture = named[0] if named else by_type.get(str(config.get("model_type")))
    if architecture not in ARCHITECTURES:
        found = architecture or f"model_type {config.get('model_type')!r}"
        raise UnsupportedModelError(f"architecture {found} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return architecture


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"activation {activation!r} is not supported; supported: silu")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"quantised weights ({method}) are not supported in Hugging Face folders; "
            "supported: float32, float16, bfloat16"
        )


def _layer_windows(config: Mapping[str, Any], architecture: str, layers: int) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM":
        return (None,) * layers
    if architecture == "MistralForCausalLM":
        # The key's absence means 4096 and an explicit null means full attention; both occur in published configs.
        window = config.get("sliding_window", 4096)
        return (int(window) if window else None,) * layers
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    if window is None:
        return (None,) * layers
    first = int(config.get("max_window_layers", 28))
    kinds = config.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(layers)
    ]
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise UnsupportedModelError(
            f"layer types {unknown} are not supported; supported: full_attention, sliding_attention"
        )
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _token_ids(*candidates: Any) -> tuple[int, ...]:
    for candidate in candidates:
        if candidate is not None:
            ids = candidate if isinstance(candidate, list | tuple) else (candidate,)
            return tuple(int(token) for token in ids)
    return ()


def _first_token_id(*candidates: Any) -> int | None:
    ids = _token_ids(*candidates)
    return ids[0] if ids else None


PRESETS: dict[str, ModelConfig] = {
    # Llama 3.1 8B Instruct.
    "llama-8b": ModelConfig(
        name="llama-8b",
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14336,
        max_position=131072,
        layer_windows=(None,) * 32,
        rope=RopeConfig(500000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        eos_token_ids=(128001, 128008, 128009),
        bos_token_id=128000,
    ),
    # Qwen3 8B.
    "qwen3-8b": ModelConfig(
        name="qwen3-8b",
        architecture="Qwen3ForCausalLM",
        vocab_size=151936,
        hidden_size=4096,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=12288,
        max_position=40960,
        layer_windows=(None,) * 36,
        rms_norm_eps=1e-6,
        rope=RopeConfig(1000000.0),
        qk_norm=True,
        eos_token_ids=(151645, 151643),
        bos_token_id=151643,
        pad_token_id=151643,
    ),
    # Qwen2.5 1.5B Instruct.
    "qwen-1.5b": ModelConfig(
        name="qwen-1.5b",
        architecture="Qwen2ForCausalLM",
        vocab_size=151936,
        hidden_size=1536,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        intermediate_size=8960,
        max_position=32768,
        layer_windows=(None,) * 28,
        rms_norm_eps=1e-6,
        rope=RopeConfig(1000000.0),
        tie_embeddings=True,
        qkv_bias=True,
        eos_token_ids=(151645, 151643),
        bos_token_id=151643,
        pad_token_id=151643,
    ),
    # SmolLM2 135M Instruct.
    "smollm2-135m": ModelConfig(
        name="smollm2-135m",
        architecture="LlamaForCausalLM",
        vocab_size=49152,
        hidden_size=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        intermediate_size=1536,
        max_position=8192,
        layer_windows=(None,) * 30,
        rope=RopeConfig(100000.0),
        tie_embeddings=True,
        eos_token_ids=(2,),
        bos_token_id=1,
        pad_token_id=2,
    ),
    # For tests: the 256 bytes and four special tokens (models/text/toy.py); heads that 1, 2 and 4 devices can hold.
    "toy": ModelConfig(
        name="toy",
        architecture="LlamaForCausalLM",
        vocab_size=260,
        hidden_size=64,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
        head_dim=16,
        intermediate_size=128,
        max_position=1024,
        layer_windows=(None, None),
        tie_embeddings=True,
        eos_token_ids=(258, 256),
        bos_token_id=257,
        pad_token_id=259,
    ),
}
# A draft model for it: half as wide, of one layer, the same vocabulary.
PRESETS["toy-draft"] = replace(
    PRESETS["toy"],
    name="toy-draft",
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    intermediate_size=64,
    layer_windows=(None,),
)
# Its tokens and 13 million parameters: a step is milliseconds of computing on a CPU core, whose weights a shared cache holds.
PRESETS["toy-13m"] = replace(
    PRESETS["toy"],
    name="toy-13m",
    hidden_size=384,
    num_layers=8,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=1024,
    layer_windows=(None,) * 8,
)
PRESETS["llama-3.1-8b"] = replace(PRESETS["llama-8b"], name="llama-3.1-8b")  # the published name of the same shape

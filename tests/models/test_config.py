"""Configurations of every family and of both config formats, and the refusal of whatever would be computed wrongly."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from triptych.models.config import PRESETS, ModelConfig
from triptych.models.errors import UnsupportedModelError
from triptych.models.kv import bytes_per_token, kv_groups
from triptych.models.rope_config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


def test_absent_keys_take_the_published_defaults() -> None:
    config = ModelConfig.from_hf(BASE)
    assert (config.num_kv_heads, config.head_dim, config.tie_embeddings) == (4, 16, False)
    assert config.rope == RopeConfig(10000.0) and config.layer_windows == (None, None, None)
    assert config.eos_token_ids == () and config.bos_token_id is None


def test_the_older_and_the_newer_rope_keys_mean_the_same() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    older = BASE | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3"} | llama3}
    newer = BASE | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | llama3}
    assert ModelConfig.from_hf(older).rope == ModelConfig.from_hf(newer).rope
    assert ModelConfig.from_hf(older).rope == RopeConfig(5e5, Llama3Scaling(8.0, 1.0, 4.0, 64))
    legacy = ModelConfig.from_hf(BASE | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert legacy.rope == RopeConfig(10000.0, LinearScaling(2.0))


def test_yarn_fills_in_what_the_paper_gives() -> None:
    rope = ModelConfig.from_hf(BASE | {"rope_scaling": {"type": "yarn", "factor": 4.0}}).rope
    assert isinstance(rope.scaling, YarnScaling)
    assert (rope.scaling.beta_fast, rope.scaling.beta_slow, rope.scaling.original_max_position) == (32.0, 1.0, 128)
    assert rope.amplitude == pytest.approx(1.1386294361)


def test_generation_config_decides_the_end_of_sequence_ids() -> None:
    config = BASE | {"eos_token_id": 2}
    assert ModelConfig.from_hf(config).eos_token_ids == (2,)
    assert ModelConfig.from_hf(config, {"eos_token_id": [7, 8]}).eos_token_ids == (7, 8)
    assert ModelConfig.from_hf(config, {"bos_token_id": 1}).eos_token_ids == (2,)


def test_windows_of_each_family() -> None:
    mistral = BASE | {"architectures": ["MistralForCausalLM"]}
    assert ModelConfig.from_hf(mistral | {"sliding_window": 8}).layer_windows == (8, 8, 8)
    assert ModelConfig.from_hf(mistral | {"sliding_window": None}).layer_windows == (None,) * 3
    assert ModelConfig.from_hf(mistral).layer_windows == (4096,) * 3
    qwen = BASE | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "max_window_layers": 2}
    assert ModelConfig.from_hf(qwen | {"use_sliding_window": False}).layer_windows == (None,) * 3
    assert ModelConfig.from_hf(qwen | {"use_sliding_window": True}).layer_windows == (None, None, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*supported: LlamaForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "gelu.*supported: silu"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2}},
            "longrope.*supported: linear, dynamic, llama3, yarn",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs a 'factor'"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, "mrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"head_dim": 15}, "odd"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        ModelConfig.from_hf(BASE | change)


def test_a_config_that_lacks_a_size_says_which() -> None:
    with pytest.raises(UnsupportedModelError, match="hidden_size"):
        ModelConfig.from_hf({key: value for key, value in BASE.items() if key != "hidden_size"})


def test_the_fingerprint_follows_what_is_computed_and_nothing_else() -> None:
    toy = PRESETS["toy"]
    renamed = dataclasses.replace(toy, name="other", eos_token_ids=(9,), max_position=7)
    assert renamed.fingerprint() == toy.fingerprint()
    changed = [
        dataclasses.replace(toy, rms_norm_eps=1e-6),
        dataclasses.replace(toy, rope=RopeConfig(10000.0, LinearScaling(2.0))),
        dataclasses.replace(toy, layer_windows=(None, 8)),
    ]
    assert len({config.fingerprint() for config in [toy, *changed]}) == 4


def test_presets_have_their_published_sizes() -> None:
    assert PRESETS["smollm2-135m"].parameter_count() == 134_515_008
    assert PRESETS["llama-8b"].parameter_count() == 8_030_261_248
    assert PRESETS["qwen-1.5b"].parameter_count() == 1_543_714_304


def test_one_kv_group_covers_all_layers() -> None:
    groups = kv_groups(PRESETS["llama-8b"], "bfloat16")
    assert [group.layers for group in groups] == [tuple(range(32))]
    assert bytes_per_token(groups) == 2 * 32 * 8 * 128 * 2
    with pytest.raises(ValueError, match="int3"):
        kv_groups(PRESETS["toy"], "int3")


def test_configs_heads_and_kv_groups_are_read_without_jax() -> None:
    modules = "triptych.models.config, triptych.models.kv, triptych.sharding.heads"
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

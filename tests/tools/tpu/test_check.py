"""`triptych compile-check` of text models: the engine's programs go through the real TPU compiler, and the verdict is of all that is on a chip."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import jax
import pytest
from jax.experimental import topologies

from tests.tools.tpu.checking import NO_COMPILER, compile_check
from triptych.models.config import PRESETS, ModelConfig
from triptych.models.errors import QuantisationError
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.engine.buckets import Buckets, ExtendShape
from triptych.runtime.engine.compiling import Program
from triptych.runtime.engine.variants import Variant
from triptych.sharding.mesh import make_mesh
from triptych.sharding.tpu import TARGETS
from triptych.tools.tpu import check
from triptych.tools.tpu.compiled import Compiled, deeper
from triptych.tools.tpu.models import TEXT, PublishedVision
from triptych.tools.tpu.named import models_named
from triptych.tools.tpu.text import decides

SMALL = ("--max-model-len=512", "--max-num-seqs=8", "--max-num-batched-tokens=64")
NARROW = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 512, "tie_word_embeddings": True,
}  # fmt: skip


@NO_COMPILER
def test_a_decode_step_and_what_moves_pages_compile_for_four_of_eight_chips(tmp_path: Path) -> None:
    """A narrow model, because wide ones take the compiler three times as long; heads of a real one's number and size."""
    (tmp_path / "config.json").write_text(json.dumps(NARROW))
    (model,) = models_named(str(tmp_path), tmp_path)
    assert isinstance(model, ModelConfig)
    only = ("--only=extend decode=8 prefill=0", "--only=sample greedy", "--only=copy", "--only=scatter")
    rows = {row["name"]: row for row in compile_check("v6e:2x4", str(tmp_path), "--tp=4", *SMALL, *only)}
    assert set(rows) == {"extend decode=8 prefill=0 width=32", "sample greedy 8", "copy", "scatter heads=1"}
    assert all(row["fits"] and row["peak_bytes"] <= row["needs_bytes"] < row["memory_bytes"] for row in rows.values())
    step = rows["extend decode=8 prefill=0 width=32"]
    # Nine tenths of a chip: a quarter of the weights (heads padded from nine to twelve), and pages.
    assert step["argument_bytes"] == pytest.approx(0.9 * step["memory_bytes"], rel=0.01)
    body = model.parameter_count() - model.vocab_size * model.hidden_size
    assert 2 * 8 * body / 4 < step["flops"] < 1.5 * 2 * 8 * body / 4, "of thirty layers, of which two were compiled"


@NO_COMPILER
@pytest.mark.slow
@pytest.mark.limit(600)
def test_two_layers_tell_what_thirty_take() -> None:
    only = "--only=extend decode=8 prefill=0"
    (told,) = compile_check("v6e:2x4", "smollm2-135m", *SMALL, only)
    (whole,) = compile_check("v6e:2x4", "smollm2-135m", *SMALL, only, "--full-depth", limit=550)
    for figure in ("argument_bytes", "flops", "peak_bytes"):
        assert told[figure] == pytest.approx(whole[figure], rel=0.02), figure


@NO_COMPILER
@pytest.mark.slow
@pytest.mark.limit(600)
def test_layer_groups_have_programs_of_their_own() -> None:
    rows = {row["name"] for row in compile_check("v6e:2x4", "smollm2-135m", *SMALL, "--kv-layer-groups=10", limit=550)}
    assert {"layers decode=0 prefill=64 width=32 0", "embed decode=0 prefill=64 width=32"} <= rows
    assert "extend decode=8 prefill=0 width=32" in rows and "extend decode=0 prefill=64 width=32" not in rows


@NO_COMPILER
@pytest.mark.slow
@pytest.mark.limit(1200)
@pytest.mark.parametrize("model", TEXT)
@pytest.mark.parametrize(
    ("target", "tp"), [(target.name, tp) for target in TARGETS.values() for tp in (4, 8) if tp <= target.chips]
)
def test_every_program_fits_every_target_at_full_depth(target: str, tp: int, model: str) -> None:
    if model == "smollm2-135m" and tp == 8:
        pytest.skip("three KV heads do not go over eight chips")
    # Chunks of 512 tokens: those of 2048 take the compiler three times as long.
    flags = (f"--tp={tp}", "--max-num-batched-tokens=512")
    rows = {row["name"]: row for row in compile_check(target, model, *flags, limit=1150)}
    kinds = {name.split()[0] for name in rows}
    assert kinds == {"extend", "sample", "score", "copy", "seat", "pools", "state", "gather", "scatter"}
    forms = {(" decode=0 " in name, " prefill=0 " in name) for name in rows if name.startswith("extend")}
    assert forms == {(False, False), (True, False), (False, True)}
    assert all(row["fits"] for row in rows.values())


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--target=v9:9x9", "--model=qwen3-8b"), "no TPU target 'v9:9x9'; known: v5e:2x2"),
        (("--target=v5e:2x2", "--model=nothing"), "no model 'nothing' to check: .*other names are smollm2-135m"),
        (("--target=v5e:2x4", "--model=smollm2-135m", "--tp=8"), "9 query heads over 3 KV heads do not fit on tp=8"),
        (("--target=v5e:2x2", "--model=qwen3-8b", "--tp=8"), "--tp is 8; the slice has 4 chips"),
        (("--target=v5e:2x2", "--model=llava-1.5-7b", "--tp=5"), "--tp is 5; the slice has 4 chips"),
        (("--target=v5e:2x2", "--model=qwen3-8b"), r"pip install 'triptych\[tpu\]'"),
        (
            ("--target=v5e:2x2", "--model=qwen3-8b", "--page-size=0", "--slots=-1"),
            "--page-size, --slots must be positive",
        ),
        (("--target=v5e:2x2", "--model=qwen3-8b", "--memory-fraction=7"), "--memory-fraction is 7.0; expected a share"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(argv: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, platform: str) -> None:
        raise RuntimeError("no libtpu")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ConfigError, match=message):
        check.run(arguments(*argv))


def test_weights_beyond_a_chip_do_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixteen gigabytes of weights, of a chip that has sixteen: said before anything is compiled, so any mesh will do."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(check, "_mesh", lambda args, tp: make_mesh(jax.devices()[:tp], tp))
    assert check.run(arguments("--target=v5e:2x2", "--model=llama-3.1-8b", "--tp=1", "--json")) == 1
    out = capsys.readouterr()
    (row,) = map(json.loads, out.out.splitlines())
    assert not row["fits"] and "KV pages" in row["error"]
    assert "llama-3.1-8b does not fit v5e:2x2" in out.err


def test_quantised_weights_leave_room_for_pages() -> None:
    """Eight billion weights on a chip of sixteen gigabytes: not as they are, but in a byte each."""
    asked = arguments("--target=v5e:2x2", "--model=-", *SMALL, "--weights=int8", "--attention=reference")
    engine = check._engine(asked, PRESETS["llama-8b"], make_mesh(jax.devices()[:1], 1), 16 << 30)
    assert 7.5e9 < engine.weight_bytes < 8.5e9 and engine.num_pages > 33
    assert "extend decode=8 prefill=0 width=32" in engine.pieces(1, every=False)
    asked.weights = "int4-128"
    with pytest.raises(QuantisationError, match="groups of 128"):
        _ = check._engine(asked, PRESETS["toy"], engine.mesh, 16 << 30).num_pages


def test_a_verdict_is_of_some_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("_mesh", "_engine"):
        monkeypatch.setattr(check, name, lambda *args: None)
    monkeypatch.setattr(check, "_check_text", lambda *args: iter(()))
    with pytest.raises(ConfigError, match="no program of dummy:toy has a name that begins with nonsense"):
        check.run(arguments("--target=v5e:2x2", "--model=dummy:toy", "--only=nonsense"))


@pytest.mark.parametrize(
    ("model", "step", "form"), [("smollm2-135m", 30, "extend"), ("smollm2-135m", 7, "layers"), ("toy", 1, "layers")]
)
def test_groups_of_all_layers_are_no_cut_and_models_of_few_layers_are_compiled_whole(
    model: str, step: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Compiled(argument_bytes=1, temp_bytes=1, peak_bytes=1, flops=1.0, bytes_accessed=1.0, seconds=1.0)
    monkeypatch.setattr(check, "_compile", lambda piece, shallow: compiled)
    asked = arguments("--target=v6e:2x4", "--model=-", *SMALL, "--attention=reference", f"--kv-layer-groups={step}")
    engine = check._engine(asked, PRESETS[model], make_mesh(jax.devices()[:1], 1), 8 << 30)
    names = [row.name for row in check._check_text(engine, asked, check.Report(True, "", 8 << 30))]
    assert any(name.startswith(f"{form} decode=0 prefill=64") for name in names), names


def test_a_folder_is_read_for_its_shapes_alone(tmp_path: Path) -> None:
    text = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 128,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(text))
    (model,) = models_named(str(tmp_path), tmp_path)
    assert (model.hidden_size, model.num_kv_heads) == (64, 4)  # type: ignore[union-attr]
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    both = {"model_type": "llava", "image_token_index": 300, "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(both))
    decoder, encoder = models_named(str(tmp_path), tmp_path)
    assert decoder == model and isinstance(encoder, PublishedVision) and encoder.config.hidden_size == 32
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Mamba2ForCausalLM"]}))
    with pytest.raises(ConfigError, match="Mamba2"):
        models_named(str(tmp_path), tmp_path)
    assert models_named("dummy:toy", tmp_path) == (PRESETS["toy"],)


def test_layers_that_are_alike_add_the_same_each() -> None:
    one = Compiled(argument_bytes=100, temp_bytes=50, peak_bytes=160, flops=7.0, bytes_accessed=90.0, seconds=2.0)
    two = Compiled(argument_bytes=130, temp_bytes=40, peak_bytes=185, flops=9.0, bytes_accessed=120.0, seconds=3.0)
    whole = deeper(one, two, 8)
    assert (whole.argument_bytes, whole.flops, whole.bytes_accessed) == (130 + 8 * 30, 9 + 8 * 2, 120 + 8 * 30)
    assert whole.temp_bytes == 40, "less for two layers than for one does not become less still"
    assert whole.seconds == 5.0, "what was spent"


def test_the_largest_of_each_form_decide() -> None:
    shapes = [
        ExtendShape(*sizes)
        for sizes in ((1, 0, 4), (8, 0, 4), (8, 0, 16), (0, 32, 16), (0, 64, 4), (0, 64, 16), (8, 64, 16))
    ]
    buckets = Buckets(tuple(shapes), draws=(1, 8))

    def chosen(*keys: tuple) -> list[tuple]:
        return [key for key in keys if decides(Program(key, len, (), None), buckets)]

    assert chosen(*(("extend", shape) for shape in shapes)) == [("extend", shapes[at]) for at in (2, 5, 6)]
    assert chosen(("layers", shapes[4], 0), ("layers", shapes[5], 0)) == [("layers", shapes[5], 0)]
    assert chosen(("sample", Variant.FULL, 1), ("sample", Variant.FULL, 8)) == [("sample", Variant.FULL, 8)]
    assert chosen(("score", 32), ("score", 64), ("copy",)) == [("score", 64), ("copy",)]

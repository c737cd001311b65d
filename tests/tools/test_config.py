"""ServeConfig: where values come from, what is refused, and that a dump reads back."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.wire.listening import local_endpoint
from triptych.tools.config import ServeConfig
from triptych.tools.settings import add_arguments, child_environment, dump, env_name, flag_names, parse_bytes, resolve


def configure(*argv: str, env: dict[str, str] | None = None) -> ServeConfig:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, ServeConfig)
    return resolve(ServeConfig, parser.parse_args(argv), env or {})


def test_defaults_serve_the_default_model_on_the_loopback_interface():
    config = configure()
    assert (config.model, config.topology, config.host, config.port) == ("smollm2", "1P1D", "127.0.0.1", 8431)
    assert config == ServeConfig()


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path):
    file = tmp_path / "serve.json"
    file.write_text(json.dumps({"port": 1, "seed": 1, "max-num-seqs": 1}))
    env = {"TRIPTYCH_PORT": "2", "TRIPTYCH_SEED": "2"}
    config = configure("--config", str(file), "--port", "3", env=env)
    assert (config.port, config.seed, config.max_num_seqs, config.page_size) == (3, 2, 1, 16)


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("--tensor-parallel-size=2", "tensor_parallel_size", 2),
        ("--tp=2", "tensor_parallel_size", 2),
        ("--block-size=32", "page_size", 32),
        ("--page-size=32", "page_size", 32),
        ("--mem-fraction-static=0.5", "gpu_memory_utilization", 0.5),
        ("--chunked-prefill-size=512", "max_num_batched_tokens", 512),
        ("--max-running-requests=3", "max_num_seqs", 3),
        ("--context-length=99", "max_model_len", 99),
        ("--max-model-len=auto", "max_model_len", None),
        ("--no-enable-prefix-caching", "enable_prefix_caching", False),
        ("--kv-cache-memory=1.5GiB", "kv_cache_memory", 3 * 2**29),
    ],
)
def test_flags_under_the_names_that_users_know(flag: str, field: str, value: object):
    assert getattr(configure(flag), field) == value


def test_every_field_has_a_flag_and_an_environment_twin_that_do_the_same():
    samples: dict[str, str] = {"bool": "false", "int": "7", "float": "0.5", "str": "x"}
    special = {
        "topology": "2PD",
        "chat_template": __file__,
        "emulate_devices": "8",
        "heartbeat_timeout": "60",
        "kv_layer_groups": "3",
    }
    for field in dataclasses.fields(ServeConfig):
        if field.metadata["parse"] is None and field.metadata["choices"]:
            text = field.metadata["choices"][0]
        else:
            text = special.get(field.name) or samples[str(field.type).split(" ")[0]]
        pair = {
            "prefill_tp": ["--topology=1P1D"],
            "decode_tp": ["--topology=1P1D"],
            "heartbeat_interval": ["--heartbeat-timeout=60"],
            "speculative_model": ["--speculative=draft"],
        }.get(field.name, [])
        by_env = configure(*pair, env={env_name(field): text})
        if isinstance(field.default, bool):
            assert configure(f"--no-{flag_names(field)[0][2:]}") == by_env
        else:
            assert configure(*pair, f"{flag_names(field)[0]}={text}") == by_env


def test_all_unreadable_values_are_reported_at_once_with_their_sources(tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text('page_size = "many"\n')
    with pytest.raises(ConfigError) as caught:
        configure(
            "--config", str(file), "--port", "http", "--transport", "pigeon", env={"TRIPTYCH_MAX_NUM_SEQS": "2.5"}
        )
    for part in (
        "--port: 'http'",
        "--transport: 'pigeon' is not one of auto, local",
        "TRIPTYCH_MAX_NUM_SEQS: '2.5'",
        "page_size: 'many'",
    ):
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port=70000"], "port is 70000"),
        (["--max-num-seqs=0"], "max_num_seqs is 0; expected a positive number"),
        (["--request-timeout=nan"], "request_timeout is nan"),
        (["--gpu-memory-utilization=1.5"], "(0, 1]"),
        (["--topology=1P"], "for example 1P1D"),
        (["--host=0.0.0.0:8431"], "the port has a setting of its own"),
        (["--num-pages=9", "--kv-cache-memory=1MiB"], "give one of them"),
        (["--heartbeat-interval=5"], "one late heartbeat ends a worker"),
        (["--transport=local"], "add --processes one"),
        (["--transport=local", "--topology=1E1PD"], "add --processes one"),
        (["--media-pages=1"], "media_pages is 1; expected 0 (no media)"),
        (["--encode-patches=0"], "encode_patches is 0; expected a positive number"),
        (["--topology=PD", "--prefill-tp=2"], "mean nothing for topology 1PD"),
        (["--topology=2P1D", "--tp=2", "--processes=one", "--emulate-devices=4"], "needs 6 devices"),
        (["--max-prompt-tokens=64", "--max-model-len=64"], "no room for output"),
        (["--kv-cache-dtype=int8", "--attention=tpu"], "attention 'tpu' does not read KV in int8"),
        (["--kv-cache-dtype=int4"], "'int4' is not one of auto, float32, bfloat16, int8, fp8"),
        (["--api-key=two words"], "white space"),
        (["--chat-template=/nonexistent.jinja"], "is not a file"),
        (["--config=/nonexistent.json"], "No such file"),
    ],
)
def test_what_cannot_work_is_refused_in_words_that_help(argv: list[str], words: str):
    with pytest.raises(ConfigError) as caught:
        configure(*argv)
    assert words in caught.value.message


def test_several_problems_make_one_error():
    with pytest.raises(ConfigError) as caught:
        configure("--port=-1", "--seed=-1")
    assert "port is -1" in caught.value.message and "seed is -1" in caught.value.message


def test_an_unknown_key_in_a_file_is_an_error_and_not_ignored(tmp_path: Path):
    file = tmp_path / "serve.json"
    file.write_text('{"prot": 1}')
    with pytest.raises(ConfigError, match=r"unknown settings prot; known are .*api_key.*, cache_dir, "):
        configure("--config", str(file))


def test_a_dump_reads_back_and_holds_no_secret(tmp_path: Path):
    config = configure(
        "--topology=2P2D", "--tp=2", "--api-key=s3cret", "--no-enable-prefix-caching", "--kv-cache-memory=1GB"
    )
    file = tmp_path / "dump.json"
    file.write_text(dump(config))
    assert "s3cret" not in file.read_text()
    assert configure("--config", str(file)) == dataclasses.replace(config, api_key=None)


def test_a_child_process_resolves_to_its_parents_configuration(tmp_path: Path):
    environ = {"TRIPTYCH_PORT": "1234", "TRIPTYCH_API_KEY": "old", "PATH": "/bin"}
    config = configure("--port=0", "--api-key=new", env=environ)
    file = tmp_path / "dump.json"
    file.write_text(dump(config))
    env = child_environment(config, environ)
    assert env == {"PATH": "/bin", "TRIPTYCH_API_KEY": "new"}
    assert configure("--config", str(file), env=env) == config


def test_devices_are_counted_per_process():
    config = configure("--topology=2P1D", "--prefill-tp=2", "--decode-tp=4")
    specs = config.plan.instances()
    assert [config.devices_of(s) for s in specs] == [4, 2, 2]
    assert config.devices_of(*specs) == 8


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("2k", 2000), ("1KiB", 1024), ("1.5 GB", 1_500_000_000), ("2Ti", 2**41)]
)
def test_sizes(text: str, size: int):
    assert parse_bytes(text.replace(" ", "")) == size


@pytest.mark.parametrize("text", ["", "GB", "1XB", "1.2.3k", "kk1"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ValueError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "smollm2"),
        (["--model=/models/Tiny-Llama/"], "Tiny-Llama"),
        (["--model=x/y.Q4_1.gguf"], "y.Q4_1"),
        (["--model=org/name"], "name"),
        (["--served-model-name=mine"], "mine"),
    ],
)
def test_the_served_name_is_short_unless_given(argv: list[str], name: str):
    assert configure(*argv).served_name == name


def test_a_wildcard_address_is_reached_through_the_loopback_interface():
    assert local_endpoint("0.0.0.0", 1) == "127.0.0.1:1"
    assert local_endpoint("::", 2) == "[::1]:2"
    assert local_endpoint("10.0.0.1", 3) == "10.0.0.1:3"

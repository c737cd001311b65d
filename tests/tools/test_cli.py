"""The command line against a real gRPC server with a toy model: what is sent, what is printed, how errors end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.fake_server import ToyInference, start
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.client import Result
from triptych.tools import chat, generate
from triptych.tools.cli import COMMANDS, main


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[ToyInference, str]]:
    grpc_server, toy, address = start()
    yield toy, address
    grpc_server.stop(0).wait()


@pytest.fixture
def toy(server: tuple[ToyInference, str]) -> ToyInference:
    server[0].requests.clear()
    server[0].metadata.clear()
    return server[0]


@pytest.fixture
def address(server: tuple[ToyInference, str]) -> str:
    return server[1]


def test_generate_streams_text_and_leaves_unset_sampling_to_the_server(toy: ToyInference, address: str, capsys):
    assert main(["generate", "AB", "--address", address, "--temperature", "0", "--stop", "x", "--stop", "y"]) == 0
    assert capsys.readouterr().out == "67 68 69 \n"
    (request,) = toy.requests
    assert request.prompt == "AB" and list(request.sampling.stop) == ["x", "y"]
    assert request.sampling.HasField("temperature") and request.sampling.temperature == 0.0
    assert not request.sampling.HasField("top_p") and not request.sampling.HasField("max_tokens")


def test_generate_sends_chats_token_ids_and_the_api_key(toy: ToyInference, address: str, capsys, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_API_KEY", "s3cret")
    monkeypatch.setenv("TRIPTYCH_ADDRESS", address)
    assert main(["generate", "--chat", "hi", "--system", "be brief", "--max-tokens", "1"]) == 0
    assert main(["generate", "--token-ids", "1,42,7", "--json"]) == 0
    chat_request, ids_request = toy.requests
    assert [(m.role, m.content) for m in chat_request.chat.messages] == [("system", "be brief"), ("user", "hi")]
    assert list(ids_request.token_ids.ids) == [1, 42, 7]
    assert toy.metadata[0]["authorization"] == "Bearer s3cret"
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["token_ids"] == [8, 9, 10]
    assert printed["usage"]["prompt_tokens"] == 3 and printed["timings"]["pages_pulled"] == 2


def test_generate_shows_images_before_the_text(toy: ToyInference, address: str, tmp_path: Path, capsys):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for index, file in enumerate(files):
        file.write_bytes(b"image %d" % index)
    flags = [*(part for file in files for part in ("--image", str(file))), "--address", address]
    assert main(["generate", "What is this?", *flags]) == 0
    assert main(["generate", "--chat", "What is this?", *flags]) == 0
    prompt, chat_request = toy.requests[-2:]
    assert (prompt.prompt, [media.data for media in prompt.media]) == ("What is this?", [b"image 0", b"image 1"])
    first, second, text = chat_request.chat.messages[0].parts
    assert (first.media.data, second.media.data, text.text) == (b"image 0", b"image 1", "What is this?")
    assert main(["generate", "A", "--image", str(tmp_path / "none.png"), "--address", address]) == 1
    assert "images[0]: " in capsys.readouterr().err


def test_generate_shows_videos_after_the_images(toy: ToyInference, address: str, tmp_path: Path) -> None:
    for name in ("v.mp4", "i.png"):
        (tmp_path / name).write_bytes(name.encode())
    flags = ["--video", str(tmp_path / "v.mp4"), "--image", str(tmp_path / "i.png"), "--address", address]
    assert main(["generate", "What happens?", *flags]) == 0
    assert main(["generate", "--chat", "What happens?", *flags]) == 0
    prompt, chat_request = toy.requests[-2:]
    expected = [(b"i.png", "image"), (b"v.mp4", "video")]
    assert [(media.data, media.type) for media in prompt.media] == expected
    assert [(part.media.data, part.media.type) for part in chat_request.chat.messages[0].parts[:2]] == expected


def test_generate_verbose_tells_where_the_time_went(toy: ToyInference, address: str, capsys):
    assert main(["generate", "A", "-v", "--address", address]) == 0
    shown = capsys.readouterr().err
    assert "1 prompt tokens (0 cached), 3 generated" in shown
    assert "KV to decode-0" in shown and "2 pages" in shown


def test_generate_verbose_tells_of_attempts_only_when_something_was_lost():
    def described(attempts: int) -> str:
        summary = pb.Summary(usage=pb.Usage(prompt_tokens=1), timings=pb.Timings(attempts=attempts))
        result = Result()
        result.feed(pb.GenerateResponse(summary=summary))
        return generate.describe(result)

    assert "attempt" not in described(1)
    assert "went on 2 times after a loss: attempt 3 finished it" in described(3)


def test_a_refusal_is_one_line_on_stderr_and_status_1(toy: ToyInference, address: str, capsys):
    assert main(["generate", "overload", "--address", address]) == 1
    captured = capsys.readouterr()
    assert "triptych generate: RESOURCE_EXHAUSTED: the queue is full (retry in 2 s)" in captured.err
    assert "Traceback" not in captured.err


def test_an_unreachable_server_is_an_error_and_not_a_hang(capsys):
    assert main(["generate", "A", "--address", "127.0.0.1:1"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate"], "either a prompt or --token-ids"),
        (["generate", "--token-ids", "one"], "are not whole numbers"),
        (["generate", "--chat", "--token-ids", "1"], "give one of them"),
        (["generate", "A", "--system", "S"], "--system needs --chat"),
        (["serve", "dummy:toy", "--model", "smollm2", "--dump-config", "-"], "two models are named"),
        (["generate", "A", "--address", "nowhere"], "expected host:port"),
        (["serve", "--port", "x"], "--port: 'x' is not a whole number"),
        (["bench", "--goodput", "speed:1"], "is not one of ttft"),
        (["convert", "/nonexistent", "/nonexistent-out"], "no model '/nonexistent'"),
        (["convert", "dummy:toy-vlm", "/nonexistent-out"], "vision encoder"),
    ],
)
def test_wrong_calls_end_with_status_2_and_an_explanation(argv: list[str], words: str, capsys):
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_info_shows_model_and_instances(address: str, capsys):
    assert main(["info", "--address", address]) == 0
    shown = capsys.readouterr().out
    assert "toy (Toy, 1.0 M parameters" in shown and "topology 1P1D" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["decode-0", "decode", "1", "1", "0", "3/4", "7", "0"] in rows
    assert "cannot serve now: no instance for prefill" in shown
    assert main(["info", "--json", "--address", address]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["loads"]["instances"][0]["roles"] == ["decode"]
    assert printed["server"]["config"] == {"topology": "1P1D"}


def test_chat_keeps_the_conversation_until_reset(toy: ToyInference, address: str, capsys, monkeypatch):
    lines = iter(["A", "B", "/reset", "C", "/system S", "D", "/unknown", "", "/quit", "never read"])
    monkeypatch.setattr(chat, "_read", lambda: next(lines, None))
    assert main(["chat", "--address", address, "--max-tokens", "1"]) == 0
    asked = [[(m.role, m.content) for m in r.chat.messages] for r in toy.requests]
    assert asked == [
        [("user", "A")],
        [("user", "A"), ("assistant", "66 "), ("user", "B")],
        [("user", "C")],
        [("system", "S"), ("user", "D")],
    ]
    captured = capsys.readouterr()
    assert captured.out == "66 \n67 \n68 \n69 \n"
    assert "no command /unknown" in captured.err


def test_bench_measures_compares_and_writes_json(toy: ToyInference, address: str, capsys, tmp_path: Path):
    out = tmp_path / "bench.json"
    load = ["--num-requests", "5", "--rate", "inf", "--input-len", "4", "--output-len", "6", "--warmup", "1"]
    compare = ["--compare", address, address, "--rounds", "2"]
    assert main(["bench", *load, *compare, "--goodput", "ttft:30", "--json", str(out)]) == 0
    assert len(toy.requests) == 2 * 2 * (5 + 1)
    assert len({r.cache_salt for r in toy.requests}) == len(toy.requests)
    assert all(r.sampling.ignore_eos and 2 not in r.token_ids.ids for r in toy.requests)
    shown = capsys.readouterr().out
    assert "requests 5, completed 5, failed 0" in shown and "TTFT p50 ms" in shown and "100.0% of requests met" in shown
    written = json.loads(out.read_text())
    assert len(written["runs"]) == 4
    assert all(r["output_tokens"] == 6 for run in written["runs"].values() for r in run["requests"])


def test_bench_replays_the_bundled_trace(toy: ToyInference, address: str, capsys):
    argv = [
        "bench",
        "--address",
        address,
        "--trace",
        "azure",
        "--num-requests",
        "4",
        "--speed",
        "1000",
        "--length-scale",
        "0.05",
    ]
    assert main(argv) == 0
    assert sorted(len(r.token_ids.ids) for r in toy.requests[-4:]) == [5, 19, 20, 44]  # they overlap: any order
    assert "completed 4" in capsys.readouterr().out


def test_bench_says_which_requests_of_a_trace_it_cut_and_prints_json_alone(toy: ToyInference, address: str, capsys):
    load = ["--trace", "azure", "--num-requests", "4", "--speed", "1000", "--warmup", "0"]
    assert main(["bench", "--address", address, *load, "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runs"][address]["summary"]["completed"] == 4
    assert "of 4 requests are longer than the model's 256 tokens" in captured.err and "TTFT" in captured.err


def test_help_lists_every_command_and_an_unknown_one_is_refused(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main(["frobnicate"]) == 2
    assert "no command 'frobnicate'" in capsys.readouterr().err
    assert main(["--version"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(name: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: triptych {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["generate", "chat", "info", "bench", "serve", "scheduler"])
def test_commands_that_own_no_device_do_not_import_jax(name: str):
    code = f"import sys, importlib; importlib.import_module({COMMANDS[name].module!r}); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_serve_dumps_the_resolved_configuration(capsys):
    assert main(["serve", "dummy:toy", "--tp", "2", "--dump-config", "-"]) == 0
    dumped = json.loads(capsys.readouterr().out)
    assert (dumped["model"], dumped["tensor_parallel_size"], dumped["topology"]) == ("dummy:toy", 2, "1P1D")


def test_without_jax_a_device_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert main(["floor", "dummy:toy"]) == 1
    assert "pip install 'triptych[cpu]'" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "triptych.tools.cli", "serve", "--dump-config", "-"]
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.wait(60) == 141
        assert process.stderr.read() == ""

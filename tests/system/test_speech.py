"""Sound through encode, prefill and decode: what the toy Whisper writes down is what its reference loop says, wherever the stages are."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.runtime.engine.speech_rig import transcriber, wave
from tests.system.toy import NO_CACHE, PATIENT
from tests.system.toy_media import assert_nothing_held
from triptych.models.hub.resolve import resolve_model
from triptych.models.speech.windows import split_windows
from triptych.runtime.client import Client, Result
from triptych.runtime.cluster.front import FrontConfig, open_served
from triptych.runtime.cluster.local import LocalCluster
from triptych.runtime.core.errors import InvalidRequestError
from triptych.runtime.core.instance import TransportKind
from triptych.runtime.core.topology import parse
from triptych.runtime.engine.compile_guard import no_compilation
from triptych.runtime.gateway.config import GatewayConfig, ServerFacts
from triptych.runtime.worker.config import InstancePlan, WorkerConfig
from triptych.tools.cli import main

pytestmark = pytest.mark.limit(600)
MODEL = "dummy:toy-whisper"
WORKER: dict[str, Any] = {
    "name": "worker-0",
    "scheduler": "set by the cluster",
    "model": MODEL,
    "cache": NO_CACHE,
    "served_model_name": "toy-whisper",
    "num_pages": 65,
    "max_model_len": 64,
    "chunk_tokens": 32,
    "max_num_seqs": 2,
}
ROWS = [
    ("1E1P1D", "device", (1, 2, 1)),
    pytest.param(("EPD", "local", (1, 1, 1)), marks=pytest.mark.slow),
    pytest.param(("2E2P2D", "grpc", (1, 1, 2)), marks=pytest.mark.slow),
    pytest.param(("EP-D", "grpc", (2, 2, 1)), marks=pytest.mark.slow),
    pytest.param(("E-PD", "device", (1, 2, 2)), marks=pytest.mark.slow),
    pytest.param(("(E-P)-D", "device", (1, 1, 2)), marks=pytest.mark.slow),
]


def wav(samples: np.ndarray) -> bytes:
    """A file of float samples, so that nothing is lost."""
    out = io.BytesIO()
    soundfile.write(out, samples, 16_000, format="WAV", subtype="FLOAT")
    return out.getvalue()


def cluster_of(topology: str, transport: str, tp: tuple[int, int, int], **changes: Any) -> LocalCluster:
    """Every instance in one worker of this process."""
    sizes = dict(zip("EPD", tp, strict=True))
    plans = tuple(
        InstancePlan(
            spec.id,
            spec.roles,
            max(sizes[role.value[0].upper()] for role in spec.roles),
            taking_turns=len(spec.loops) > 1,
        )
        for spec in parse(topology).instances()
    )
    worker = WorkerConfig(**(WORKER | {"instances": plans, "transports": (TransportKind(transport),)} | changes))
    front = FrontConfig(
        host="127.0.0.1",
        port=0,
        model=open_served(resolve_model(MODEL, NO_CACHE), name="toy-whisper", max_model_len=64),
        facts=ServerFacts("test", topology),
        scheduler=PATIENT,
        gateway=GatewayConfig("set by the front"),
    )
    return LocalCluster(front, [worker])


SOUNDS = {
    "a window": wave(3),
    "a short one": wave(1, 0.4),
    "another": wave(5),
    "four seconds": np.concatenate([wave(number) for number in (2, 4, 5, 3)]),
}

WINDOWS = {name: split_windows(sound, 16_000) for name, sound in SOUNDS.items()}


def ask(client: Client, name: str, language: str = "en", **changes: Any) -> Result:
    return client.transcribe(wav(SOUNDS[name]), language=language, timeout=120, **changes)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}-{''.join(map(str, row[2]))}")
def test_transcripts_are_the_references(
    row: tuple[str, str, tuple[int, int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cold, warm, and all at once; nothing compiles meanwhile, and nothing is held afterwards."""
    expected = {(name, tongue): transcriber().text(sound, tongue) for name, sound in SOUNDS.items() for tongue in ("en", "de")}  # fmt: skip
    assert len(set(expected.values())) >= 7, "the sounds make no difference, so the test shows nothing"
    with cluster_of(*row) as cluster, Client(cluster.address) as client:
        with no_compilation():
            assert ask(client, "a window").text == ask(client, "a window").text == expected["a window", "en"]
            assert ask(client, "a window", "de").text == expected["a window", "de"]
            # Six tasks asked for it. Once more is a repair, where the machine is so slow that an instance is taken for lost.
            assert encoded(cluster) <= 2, "what is known is encoded again"
            for name in SOUNDS:
                assert ask(client, name).text == expected[name, "en"], name
            with ThreadPoolExecutor(8) as threads:
                jobs = {
                    (name, tongue): threads.submit(ask, client, name, tongue, cache_salt="at once")
                    for name in SOUNDS
                    for tongue in ("en", "de")
                }
                for asked, job in jobs.items():
                    assert job.result().text == expected[asked], asked
        usage = ask(client, "four seconds").usage
        assert (
            usage is not None and usage.prompt_tokens == 4 * len(WINDOWS["four seconds"]) and usage.audio_seconds == 4.0
        )
        check_errors(client)
        (tmp_path / "a.wav").write_bytes(wav(SOUNDS["a short one"]))
        assert main(["transcribe", str(tmp_path / "a.wav"), "--server", cluster.address, "--language", "de"]) == 0
        assert capsys.readouterr().out == expected["a short one", "de"] + "\n"
        assert_nothing_held(cluster)


def encoded(cluster: LocalCluster) -> int:
    """Windows that were encoded, by all instances."""
    return sum(snapshot.counters.get("encoded_items", 0) for snapshot in cluster.snapshots())


def check_errors(client: Client) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"language": None}, "name one of de, en"),
        ({"language": "xx"}, "^speech.language: no language 'xx'"),
        ({"n": 2}, "n is 2"),
        ({"prompt_logprobs": 1}, "prompt_logprobs is set"),
    )
    for changes, words in wrong:
        arguments: dict[str, Any] = {"language": "en"} | changes
        with pytest.raises(InvalidRequestError, match=words):
            client.transcribe(wav(SOUNDS["a window"]), **arguments)
    with pytest.raises(InvalidRequestError, match="prompt is set; toy-whisper writes down speech"):
        client.complete("text")
    with pytest.raises(InvalidRequestError, match=r"^media\[0\]: "):
        client.transcribe(b"no sound at all", language="en")

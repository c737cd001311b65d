"""Whisper in processes of its own: real speech through encode, prefill and decode, and a transcript that goes on when decode is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.models.speech.test_real_model import CLIPS, TRANSCRIPTS
from tests.runtime.engine.speech_rig import transcriber, wave
from tests.system.deployment import deployed
from tests.system.test_speech import wav
from triptych.runtime.client import Client
from triptych.runtime.client.requests import speech_request


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.limit(1200)
def test_real_speech_is_transcribed_as_by_the_numpy_program() -> None:
    """Five clips, one after another and then all at once: the transcripts are those of the reference, to the letter."""
    flags = ("--model=whisper-tiny.en", "--max-model-len=256", "--max-num-seqs=2", "--topology=1E1P1D")
    sounds = {name: (CLIPS / f"{name}.wav").read_bytes() for name in TRANSCRIPTS}
    with deployed(*flags, start_limit=800) as server, Client(server.address) as client:
        assert list(client.model_info().media_kinds) == ["audio"]
        for name, sound in sounds.items():
            result = client.transcribe(sound, timeout=200)
            assert result.text == TRANSCRIPTS[name]
            assert result.usage is not None and result.timings is not None
            assert result.timings.encode_tasks >= 1 and result.timings.embedding_bytes > 0
        with ThreadPoolExecutor(len(sounds)) as threads:
            jobs = {name: threads.submit(client.transcribe, sound, timeout=200) for name, sound in sounds.items()}
            assert {name: job.result().text for name, job in jobs.items()} == TRANSCRIPTS
        upload = client.upload_media(sounds["0880"])
        assert client.transcribe(upload, timeout=200).text == TRANSCRIPTS["0880"]
        server.wait_idle()


@pytest.mark.slow
@pytest.mark.limit(900)
@pytest.mark.parametrize("lost", ["decode-0", "prefill-0", "encode-0"])
def test_a_transcript_goes_on_when_a_process_is_lost_in_the_middle(lost: str) -> None:
    """A sound of several windows, of which two are decoded at a time: there is always one in the middle."""
    sound = np.concatenate([wave(number) for number in (3, 2, 4, 5)])
    flags = ("--model=dummy:toy-whisper", "--max-model-len=64", "--max-num-seqs=2", "--topology=1E1P1D")
    with deployed(*flags, start_limit=400) as server, Client(server.address) as client:
        old = server.processes[lost]
        with client.stream(speech_request(wav(sound), "en", False, {}, timeout=200)) as stream:
            next(stream)
            server.kill(lost)
            for _ in stream:
                pass
        assert stream.result.text == transcriber().text(sound, "en")
        assert stream.result.timings is not None
        assert stream.result.timings.attempts >= (2 if lost == "decode-0" else 1)
        server.wait_restarted(lost, old)
        assert client.transcribe(wav(sound), language="de", timeout=200).text == transcriber().text(sound, "de")
        server.wait_idle()

"""Every accepted sound becomes float32 mono at the rate that is asked for; lengths are bounded by the header and by what is really there."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.media import files
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.media.audio import decode_audio
from triptych.runtime.media.errors import CorruptMediaError, MediaKindError, MediaLimitError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import MediaType, sniff

LIMITS = MediaLimits(audio_seconds=5.0)


def decode(data: bytes, rate: int = 16000, limits: MediaLimits = LIMITS) -> np.ndarray:
    samples = decode_audio(data, sniff(data), limits, rate)
    assert samples.dtype == np.float32 and samples.ndim == 1 and samples.flags.c_contiguous
    return samples


@pytest.mark.parametrize(
    ("format", "subtype", "error"),
    [
        ("WAV", "PCM_16", 1 / 32767),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 1 / 127),
        ("WAV", "FLOAT", 0),
        ("WAVEX", "PCM_16", 1 / 32767),
        ("FLAC", "PCM_16", 1 / 32767),
    ],
)
def test_samples_at_the_rate_that_is_asked_for_come_back(format: str, subtype: str, error: float):
    wave = files.sine(0.3, 16000)
    np.testing.assert_allclose(decode(files.sound_file(wave, 16000, format, subtype)), wave, atol=error, rtol=0)


def test_channels_are_averaged():
    left, right = files.sine(0.1, 16000, 440), files.sine(0.1, 16000, 1000)
    got = decode(files.sound_file(np.stack([left, right], axis=1), 16000, subtype="FLOAT"))
    np.testing.assert_allclose(got, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_other_rates_are_resampled(rate: int):
    """A tone stays that tone: compared with the tone itself, sampled at 16 kHz, away from the ends."""
    got = decode(files.sound_file(files.sine(1.0, rate), rate, subtype="FLOAT"))
    assert abs(len(got) - 16000) <= 1
    np.testing.assert_allclose(got[800:-800], files.sine(1.0, 16000)[: len(got)][800:-800], atol=2e-3)


def test_what_lies_above_half_the_rate_is_filtered_out():
    got = decode(files.sound_file(files.sine(1.0, 48000, 12000), 48000))
    assert np.abs(got[800:-800]).max() < 1e-3


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_lossy_formats_keep_the_tone(format: str, subtype: str | None):
    got = decode(files.sound_file(files.sine(1.0, 16000), 16000, format, subtype))
    assert abs(len(got) / 16000 - 1.0) < 0.15  # MP3 pads
    spectrum = np.abs(np.fft.rfft(got))
    assert abs(spectrum.argmax() * 16000 / len(got) - 440) < 3
    assert 0.3 < np.sqrt(2 * np.mean(got[4000:12000] ** 2)) < 0.6


def test_loud_samples_are_clipped_and_samples_that_are_no_numbers_refused():
    loud = decode(files.sound_file(np.array([0.5, 3.0, -1e30], np.float32), 16000, subtype="FLOAT"))
    np.testing.assert_array_equal(loud, np.array([0.5, 1.0, -1.0], np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(CorruptMediaError, match="finite"):
            decode(files.sound_file(np.array([0.0, bad], np.float32), 16000, subtype="FLOAT"))


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_sound_that_is_too_long_is_refused(format: str):
    data = files.sound_file(files.sine(6.0, 8000), 8000, format)
    with pytest.raises(MediaLimitError, match="expected at most 5 s"):
        decode(data)
    assert len(decode(data, limits=MediaLimits(audio_seconds=7.0))) == pytest.approx(96000, rel=0.05)


def test_the_header_decides_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch):
    import soundfile

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(MediaLimitError, match="longer"):
        decode(files.sound_file(files.sine(6.0, 8000), 8000))


def test_a_flac_that_hides_its_length_is_measured_while_decoding():
    data = bytearray(files.sound_file(files.sine(6.0, 8000), 8000, "FLAC"))
    data[21] &= 0xF0  # STREAMINFO's 36 bits of total samples: zero is unknown
    data[22:26] = bytes(4)
    with pytest.raises(MediaLimitError, match="expected at most 5 s"):
        decode(bytes(data))
    short = bytearray(files.sound_file(files.sine(1.0, 16000), 16000, "FLAC"))
    short[21] &= 0xF0
    short[22:26] = bytes(4)
    assert len(decode(bytes(short))) == 16000


def _with_rate(rate: int) -> bytes:
    data = bytearray(files.sound_file(files.sine(0.1, 8000), 8000))
    data[24:28] = struct.pack("<I", rate)
    return bytes(data)


@pytest.mark.parametrize("rate", [1, 999, 800_000, 2**31 - 1])
def test_rates_that_nobody_records_are_refused(rate: int):
    with pytest.raises((CorruptMediaError, MediaLimitError)):
        decode(_with_rate(rate))


def test_too_many_channels_are_refused():
    with pytest.raises(MediaLimitError, match="20 channels"):
        decode(files.sound_file(np.zeros((10, 20), np.float32), 16000))


def test_a_sound_without_samples_is_refused():
    with pytest.raises(CorruptMediaError, match="no samples"):
        decode(files.sound_file(np.zeros(0, np.float32), 16000))


def test_a_wav_that_ends_early_gives_what_there_is_and_a_flac_is_refused():
    wave = files.sine(1.0, 16000)
    wav = files.sound_file(wave, 16000)
    got = decode(wav[: 44 + 16000])
    np.testing.assert_allclose(got, wave[:8000], atol=1 / 32767)
    flac = files.sound_file(wave, 16000, "FLAC")
    with pytest.raises(CorruptMediaError):
        decode(flac[: len(flac) // 2])


def test_what_libsndfile_opens_beyond_the_accepted_types_is_refused():
    """Bytes of one type under the name of another: libsndfile looks by itself and would open it."""
    with pytest.raises(CorruptMediaError, match="holds FLAC"):
        decode_audio(files.sound_file(files.sine(0.1, 8000), 8000, "FLAC"), MediaType.WAV, LIMITS, 16000)
    with pytest.raises(MediaKindError):
        decode_audio(b"", MediaType.PNG, LIMITS, 16000)


_WHOLE = [
    files.sound_file(files.sine(0.2, 16000), 16000, format, subtype)
    for format, subtype in [
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
    ]
]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(_WHOLE),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=8),
    st.floats(0.2, 1),
)
def test_flipped_bytes_and_cuts_raise_nothing_but_typed_errors(
    whole: bytes, flips: list[tuple[float, int]], keep: float
):
    data = bytearray(whole)
    for place, mask in flips:
        data[int(place * (len(data) - 1))] ^= mask
    data = data[: max(1, int(keep * len(data)))]
    try:
        decode(bytes(data))
    except TriptychError:
        pass

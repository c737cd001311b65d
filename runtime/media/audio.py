"""A sound file to float32 mono samples at one rate. Runs in decoder processes; needs soundfile (libsndfile) and soxr.

The header's length is looked at before anything is decoded, and counted while decoding, because headers lie. Channels are averaged. Samples are clipped to
[-1, 1], as 16-bit PCM would, so that a float file cannot carry infinities to a device.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import soundfile
import soxr

from triptych.runtime.media.errors import CorruptMediaError, MediaKindError, MediaLimitError
from triptych.runtime.media.guard import decoding
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import MediaType

FORMATS = {
    MediaType.WAV: ("WAV", "WAVEX"),
    MediaType.FLAC: ("FLAC",),
    MediaType.OGG: ("OGG",),
    MediaType.MP3: ("MP3",),
}
"""What libsndfile must find in a file of that type: it tries formats that are not accepted, too."""

MIN_RATE, MAX_RATE = 1000, 768_000  # Hz; beyond is no sound that anybody records, and resampling ratios without bound
BLOCK_VALUES = 2**18  # values decoded at a time, over all channels: 1 MB
UNKNOWN_LENGTH = 2**60  # libsndfile gives 2**63 - 1 frames where the header does not tell


class _Forward(soundfile.SoundFile):
    """Read from the beginning to the end. soundfile otherwise seeks after every read, which fails where the length is unknown."""

    def seekable(self) -> bool:
        return False


def decode_audio(data: bytes | bytearray, type: MediaType, limits: MediaLimits, rate: int) -> np.ndarray:
    """[samples] float32 in [-1, 1] at `rate` Hz.

    A WAV that is shorter than its header says gives what there is (recorders that stream write such headers); other formats that end early are refused.
    Raises CorruptMediaError, MediaLimitError (too long, too many channels), DecoderMemoryError, MediaKindError (no sound).
    """
    if type not in FORMATS:
        raise MediaKindError(f"{type.value} is no sound")
    with decoding(type), _Forward(BytesIO(data)) as file:
        _check(file, type, limits)
        mono = _read(file, type, limits)
        samples = mono if file.samplerate == rate else soxr.resample(mono, file.samplerate, rate, quality="HQ")
    return np.clip(samples, -1.0, 1.0, dtype=np.float32)


def _check(file: soundfile.SoundFile, type: MediaType, limits: MediaLimits) -> None:
    """What the header says, before anything is decoded."""
    if file.format not in FORMATS[type]:
        raise CorruptMediaError(f"this {type.value} holds {file.format}; expected {' or '.join(FORMATS[type])}")
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise CorruptMediaError(f"the sound has {file.samplerate} samples a second; expected {MIN_RATE} to {MAX_RATE}")
    if not 1 <= file.channels <= limits.audio_channels:
        raise MediaLimitError(f"the sound has {file.channels} channels; expected 1 to {limits.audio_channels}")
    if file.frames < UNKNOWN_LENGTH:
        _check_length(file.frames, file.samplerate, limits)


def _check_length(frames: int, rate: int, limits: MediaLimits) -> None:
    if frames > limits.audio_seconds * rate:
        raise MediaLimitError(
            f"the sound is longer than {frames / rate:.1f} s; expected at most {limits.audio_seconds:g} s"
        )


def _read(file: soundfile.SoundFile, type: MediaType, limits: MediaLimits) -> np.ndarray:
    """[frames] float32, the mean of the channels."""
    size = max(1, BLOCK_VALUES // file.channels)
    blocks: list[np.ndarray] = []
    frames = 0
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        frames += len(block)
        _check_length(frames, file.samplerate, limits)
        if not np.isfinite(block).all():
            raise CorruptMediaError("the sound has samples that are not finite numbers")
        blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32))
    if not frames:
        raise CorruptMediaError("the sound has no samples")
    if frames < file.frames < UNKNOWN_LENGTH and type is not MediaType.WAV:
        raise CorruptMediaError(f"the sound ends after {frames} of {file.frames} samples")
    return np.concatenate(blocks)

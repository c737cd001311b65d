"""A video file to frames. Runs in decoder processes; needs PyAV (FFmpeg).

Two operations. `index_video` reads the container without decoding and says which packets there are; the gateway's side decides from that which frames it
wants and cuts the video at key frames into runs (`video_plan.py`). `decode_runs` decodes some of the runs; several processes do so at once, and their results one
after the other are the frames of a sequential decode (FlashCodec, arXiv 2512.17574, does the same over hardware decoders).

Packets are found by their place in the file's decoding order, not by seeking, which is inexact in some containers: reading a file that is in memory is cheap.
Containers and codecs are the accepted ones by name, never guessed, so that nothing in a file can open another file or a URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import av
import av.logging
import numpy as np

from triptych.runtime.media.errors import CorruptMediaError, MediaKindError, MediaLimitError
from triptych.runtime.media.guard import decoding
from triptych.runtime.media.limits import MediaLimits, check_pixels
from triptych.runtime.media.sniff import MediaType
from triptych.runtime.media.video_plan import Run

av.logging.set_level(None)

CONTAINERS = {MediaType.MP4: "mov", MediaType.WEBM: "matroska"}
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "mpeg4")


def index_video(data: bytes | bytearray, type: MediaType, limits: MediaLimits) -> tuple[np.ndarray, dict[str, Any]]:
    """What there is to decode, without decoding it.

    Returns ([packets, 2] int64: presentation time in units of `time_base`, and 1 for a key frame, in decoding order;
    {"width", "height" in pixels as coded, "time_base" in seconds as [numerator, denominator]}).

    A WebM or a fragmented MP4 that ends early, between two packets, cannot be told from a shorter one, and is one.
    Raises CorruptMediaError, MediaLimitError (too many pixels or frames), MediaKindError (no video, a codec that is not accepted).
    """
    with decoding(type), _open(data, type, limits) as container:
        stream = _stream(container, limits)
        rows = [(packet.pts, packet.is_keyframe) for packet in _packets(container, stream, limits)]
        unit = stream.time_base  # a Fraction, or from PyAV 19 on a type of its own
        info = {"width": stream.width, "height": stream.height, "time_base": [unit.numerator, unit.denominator]}
    if not any(key for _, key in rows):
        raise CorruptMediaError("the video has no key frame")
    return np.array(rows, np.int64), info


def decode_runs(
    data: bytes | bytearray, type: MediaType, limits: MediaLimits, runs: Sequence[Run], size: tuple[int, int]
) -> np.ndarray:
    """[frames, height, width, 3] uint8: for every wanted time of every run the frame that is shown then, scaled to `size`.

    Args:
        size: (width, height) before the frames are turned upright.

    Raises as `index_video`, and CorruptMediaError if a run does not yield its frames.
    """
    width, height = size
    frames = list(frames_of(data, type, limits, runs, size))
    return np.stack(frames) if frames else np.zeros((0, height, width, 3), np.uint8)


def frames_of(
    data: bytes | bytearray, type: MediaType, limits: MediaLimits, runs: Sequence[Run], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The same one after another, [height, width, 3] each: only one is held."""
    width, height = size
    with decoding(type), _open(data, type, limits) as container:
        stream = _stream(container, limits)
        packets = list(_packets(container, stream, limits))
        for run in runs:
            for frame in _shown(stream, packets, run, limits):
                pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
                yield np.rot90(pixels, round(frame.rotation / 90) % 4)


def _shown(stream: Any, packets: Sequence[Any], run: Run, limits: MediaLimits) -> Iterator[Any]:
    """The frame shown at each of the run's wanted times: the last one that begins then or before."""
    begins, wanted, shown = packets[run.start].pts, list(reversed(run.times)), None
    for frame in _decoded(stream, packets, run, limits):
        if frame.pts < begins:
            continue  # it belongs to the frames before the key frame and may need one that was not decoded
        while wanted and wanted[-1] < frame.pts:
            yield _there(shown, begins)
            wanted.pop()
        if wanted and wanted[-1] == frame.pts:
            yield frame
            wanted.pop()
        if not wanted or (run.end is not None and frame.pts >= run.end):
            break
        shown = frame
    for _ in wanted:
        yield _there(shown, begins)


def _there(frame: Any, begins: int) -> Any:
    if frame is None:
        raise CorruptMediaError(f"the video has no frame at its key frame {begins}")
    return frame


def _decoded(stream: Any, packets: Sequence[Any], run: Run, limits: MediaLimits) -> Iterator[Any]:
    """Frames from the run's key frame on, in the order in which they are shown."""
    context = stream.codec_context
    context.flush_buffers()  # nothing of the run before
    count = 0
    for packet in (*packets[run.start :], None):
        for frame in context.decode(packet):
            count += 1
            if count > limits.video_frames:
                raise MediaLimitError(f"the video holds more than {limits.video_frames} frames, which is the most")
            check_pixels(frame.width, frame.height, limits, "a frame of the video")
            if frame.is_corrupt or frame.pts is None:
                raise CorruptMediaError(
                    f"the video is damaged at frame {count} after key frame {packets[run.start].pts}"
                )
            yield frame


def _open(data: bytes | bytearray, type: MediaType, limits: MediaLimits) -> Any:
    """The container. FFmpeg decodes a little when it opens a file; `max_pixels` holds for that as well."""
    if type not in CONTAINERS:
        raise MediaKindError(f"{type.value} is no video")
    options = {"max_pixels": str(limits.image_pixels), "threads": "1"}
    return av.open(BytesIO(data), format=CONTAINERS[type], options=options)


def _stream(container: Any, limits: MediaLimits) -> Any:
    """The first video stream, checked and set up to decode on one thread: parallelism is several processes."""
    if not container.streams.video:
        raise MediaKindError("the video file has no video stream")
    stream = container.streams.video[0]
    codec = stream.codec_context.name
    if codec not in CODECS:
        raise MediaKindError(f"the video is coded as {codec}; expected one of {', '.join(CODECS)}")
    if stream.width < 1 or stream.height < 1:  # where only the coded pictures tell the size, `max_pixels` hides it
        raise CorruptMediaError(
            f"the size of the video's frames cannot be told, or is beyond {limits.image_pixels} pixels"
        )
    check_pixels(stream.width, stream.height, limits, "a frame of the video")
    if stream.frames > limits.video_frames:
        raise MediaLimitError(f"the video holds {stream.frames} frames; expected at most {limits.video_frames}")
    if not stream.time_base:
        raise CorruptMediaError("the video does not say in which unit its times are")
    stream.codec_context.options = {"max_pixels": str(limits.image_pixels)}
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "NONE"
    return stream


def _packets(container: Any, stream: Any, limits: MediaLimits) -> Iterator[Any]:
    """The packets that lead to frames, in decoding order."""
    count = 0
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard and not packet.is_keyframe:
            continue
        if packet.pts is None:
            raise CorruptMediaError(f"packet {count} of the video has no time")
        if packet.is_corrupt:
            raise CorruptMediaError(f"packet {count} of the video is damaged")
        count += 1
        if count > limits.video_frames:
            raise MediaLimitError(f"the video holds more than {limits.video_frames} frames, which is the most")
        yield packet

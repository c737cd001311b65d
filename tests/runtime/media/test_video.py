"""The frames of a video that is decoded in parts are those of a plain sequential decode, whatever the codec and the key frames."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.media import files
from triptych.runtime.core.errors import TriptychError
from triptych.runtime.media.errors import CorruptMediaError, MediaKindError, MediaLimitError
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.sniff import MediaType, sniff
from triptych.runtime.media.video import decode_runs, index_video
from triptych.runtime.media.video_plan import VideoIndex, VideoParameters, choose_times, plan_parts

LIMITS = MediaLimits()


def index_of(data: bytes, limits: MediaLimits = LIMITS) -> VideoIndex:
    table, facts = index_video(data, sniff(data), limits)
    assert table.dtype == np.int64 and table.shape[1] == 2
    return VideoIndex(table[:, 0], table[:, 1] == 1, Fraction(*facts["time_base"]), facts["width"], facts["height"])


def decode(
    data: bytes, parameters: VideoParameters, parts: int = 1, limits: MediaLimits = LIMITS
) -> tuple[tuple[float, ...], np.ndarray]:
    """(seconds, frames), decoded part by part as different processes would."""
    index = index_of(data, limits)
    times = choose_times(index, parameters, limits)
    size = parameters.size or (index.width, index.height)
    pieces = [
        decode_runs(data, sniff(data), limits, runs, size) for runs in plan_parts(index, times, parts, part_frames=1)
    ]
    return index.seconds(times), np.concatenate(pieces)


FRAMES = files.video_frames(37)
VIDEOS = {
    "h264": files.video_file(FRAMES),
    "h264, open groups": files.video_file(
        FRAMES, options={"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=8:min-keyint=8"}
    ),
    "h264, one group": files.video_file(FRAMES, gop=1000),
    "h264, every frame a key": files.video_file(FRAMES, gop=1),
    "h264, in fragments": files.video_file(FRAMES, options={"movflags": "frag_keyframe+empty_moov"}),
    "hevc": files.video_file(
        FRAMES, "libx265", options={"x265-params": "log-level=none:keyint=8:pools=none", "preset": "ultrafast"}
    ),
    "hevc, open groups": files.video_file(
        FRAMES,
        "libx265",
        options={"x265-params": "log-level=none:keyint=8:min-keyint=8:open-gop=1:bframes=3:pools=none"},
    ),
    "av1": files.video_file(FRAMES, "libsvtav1", "webm", options={"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4": files.video_file(FRAMES, "mpeg4"),
    "vp8": files.video_file(FRAMES, "libvpx", "webm", options={"cpu-used": "8", "deadline": "realtime"}),
    "vp8, hidden frames": files.video_file(
        FRAMES, "libvpx", "webm", options={"cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "12"}
    ),
    "vp9": files.video_file(FRAMES, "libvpx-vp9", "webm", options={"cpu-used": "8", "deadline": "realtime"}),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", VIDEOS)
def test_all_frames_are_those_of_a_sequential_decode(name: str, parts: int):
    times, frames = files.sequential(VIDEOS[name])
    got_times, got = decode(VIDEOS[name], VideoParameters(), parts)
    if name == "vp8, hidden frames":  # a hidden frame has a time of its own, at which the frame before is shown
        shown = [np.searchsorted(times, time, side="right") - 1 for time in got_times]
        np.testing.assert_array_equal(got, frames[shown])
        return
    assert len(got) == len(FRAMES)
    np.testing.assert_allclose(got_times, times)
    np.testing.assert_array_equal(got, frames)


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("name", ["h264", "h264, open groups", "vp9"])
def test_frames_by_rate_are_those_shown_at_each_moment(name: str, parts: int):
    times, frames = files.sequential(VIDEOS[name])
    for rate in (0.3, 1.0, 2.5, 4.0, 9.99, 10.0, 25.0):
        got_times, got = decode(VIDEOS[name], VideoParameters(rate=rate), parts)
        moments = np.arange(0, times[-1] - times[0] + 1e-9, 1 / rate) + times[0]
        expected = np.unique(np.searchsorted(np.array(times) - 1e-6, moments, side="right") - 1)
        np.testing.assert_allclose(got_times, np.array(times)[expected], err_msg=str(rate))
        np.testing.assert_array_equal(got, frames[expected])


@pytest.mark.parametrize("count", [1, 2, 7, 36, 37, 500])
def test_frames_by_count_are_spread_evenly(count: int):
    _, frames = files.sequential(VIDEOS["h264"])
    _, got = decode(VIDEOS["h264"], VideoParameters(count=count), 3)
    places = [18] if count == 1 else np.round(np.linspace(0, 36, min(count, 37))).astype(int)
    np.testing.assert_array_equal(got, frames[places])


def test_frames_are_scaled_to_the_size_that_is_asked_for():
    _, frames = files.sequential(VIDEOS["h264"], (32, 20))
    _, got = decode(VIDEOS["h264"], VideoParameters(count=5, size=(32, 20)), 2)
    assert got.shape == (5, 20, 32, 3)
    np.testing.assert_array_equal(got, frames[[0, 9, 18, 27, 36]])


def _turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The MP4 with another display matrix (a, b, c, d of the track header; 1 is 0x10000)."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000) + data[at + 36 :]


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_a_video_taken_with_a_turned_camera_stands_upright(matrix: tuple[int, int, int, int], turns: int):
    """Clockwise by 90, 180 and 270 degrees, as phones write it."""
    _, frames = files.sequential(VIDEOS["h264"])
    _, got = decode(_turned(VIDEOS["h264"], matrix), VideoParameters(count=3))
    np.testing.assert_array_equal(got, np.rot90(frames[[0, 18, 36]], turns, axes=(1, 2)))


def test_only_groups_with_wanted_frames_are_decoded_and_work_is_dealt_evenly():
    index = index_of(VIDEOS["h264"])
    times = choose_times(index, VideoParameters(), LIMITS)
    parts = plan_parts(index, times, 5, part_frames=1)
    assert [sum(len(run.times) for run in part) for part in parts] == [8, 8, 8, 8, 5]
    assert sum((run.times for part in parts for run in part), ()) == times
    assert len(plan_parts(index, times, 5, part_frames=10)) == 3  # 37 frames are worth three processes of ten
    assert len(plan_parts(index, times, 5, part_frames=1000)) == 1
    first, last = plan_parts(index, (times[1], times[-1]), 2, part_frames=1)
    assert [run.times for run in first + last] == [(times[1],), (times[-1],)]
    assert last[0].start > 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 9), st.data())
def test_every_wanted_time_is_in_exactly_one_run_whatever_the_groups(
    groups: list[int], parts: int, data: st.DataObject
):
    keys = np.concatenate([[True] + [False] * (size - 1) for size in groups])
    index = VideoIndex(np.arange(len(keys)) * 7 - 14, keys, Fraction(1, 70), 8, 8)
    wanted = sorted(data.draw(st.sets(st.sampled_from(list(map(int, index.times))), min_size=1)))
    dealt = plan_parts(index, wanted, parts, part_frames=1)
    assert 1 <= len(dealt) <= parts
    assert [time for part in dealt for run in part for time in run.times] == wanted
    for run in (run for part in dealt for run in part):
        assert index.keys[run.start]
        assert index.times[run.start] <= run.times[0]
        assert run.end is None or run.times[-1] < run.end


def test_limits_hold_for_pixels_frames_and_what_is_taken():
    data = VIDEOS["h264"]
    with pytest.raises(MediaLimitError, match="64 x 48"):
        index_of(data, MediaLimits(image_pixels=64 * 48 - 1))
    with pytest.raises(TriptychError, match="beyond 1000 pixels"):
        index_of(VIDEOS["vp9"], MediaLimits(image_pixels=1000))
    with pytest.raises(MediaLimitError, match="37 frames"):
        index_of(data, MediaLimits(video_frames=36))
    with pytest.raises(MediaLimitError, match="more than 36 frames"):
        index_of(VIDEOS["vp9"], MediaLimits(video_frames=36))  # WebM does not say how many: counted
    index = index_of(data)
    with pytest.raises(MediaLimitError, match="37 frames of the video are asked for; expected at most 36"):
        choose_times(index, VideoParameters(), MediaLimits(sampled_frames=36))
    with pytest.raises(MediaLimitError, match="pixels together"):
        choose_times(index, VideoParameters(), MediaLimits(sampled_pixels=64 * 48 * 36))
    assert len(choose_times(index, VideoParameters(size=(8, 8)), MediaLimits(sampled_pixels=64 * 48 * 36))) == 37


def test_pixels_are_limited_by_the_stream_and_not_by_what_the_container_says():
    """The container's size is made small; the coded pictures are not."""
    data = bytearray(VIDEOS["h264"])
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    assert struct.unpack(">HH", data[at : at + 4]) == (64, 48)
    data[at : at + 4] = struct.pack(">HH", 8, 8)
    limits = MediaLimits(image_pixels=1000)
    with pytest.raises(TriptychError):
        decode(bytes(data), VideoParameters(), limits=limits)


def test_a_sound_in_a_video_container_and_another_codec_are_refused_by_name():
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            file.mux(packet)
    with pytest.raises(MediaKindError, match="no video stream"):
        index_of(buffer.getvalue())
    with pytest.raises(MediaKindError, match="mpeg2video"):
        index_of(files.video_file(FRAMES[:3], "mpeg2video", rate=25))
    with pytest.raises(MediaKindError):
        index_video(b"", MediaType.PNG, LIMITS)


def test_parameters_that_contradict_are_refused():
    contradictions: tuple[dict[str, Any], ...] = (
        {"rate": 1.0, "count": 2},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"count": 0},
        {"size": (0, 4)},
    )
    for bad in contradictions:
        with pytest.raises(TriptychError):
            VideoParameters(**bad)


@pytest.mark.parametrize("name", ["h264", "h264, in fragments", "vp9"])
def test_a_video_that_ends_early_is_refused_or_shorter_never_filled_in(name: str):
    data = VIDEOS[name]
    _, frames = files.sequential(data)
    for cut in range(40, len(data), len(data) // 12):
        try:
            times, got = decode(data[:cut], VideoParameters())
        except TriptychError:
            continue
        np.testing.assert_array_equal(got, frames[: len(times)])


def test_times_far_apart_cost_no_memory():
    index = VideoIndex(np.array([0, 2**62]), np.array([True, False]), Fraction(1, 1), 8, 8)
    assert choose_times(index, VideoParameters(rate=999.0), LIMITS) == (0, 2**62)
    with pytest.raises(CorruptMediaError):
        choose_times(VideoIndex(np.array([0]), np.array([False]), Fraction(1, 1), 8, 8), VideoParameters(), LIMITS)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([VIDEOS["h264"], VIDEOS["vp8"], VIDEOS["mpeg4"]]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=8),
    st.floats(0.2, 1),
)
def test_flipped_bytes_and_cuts_raise_nothing_but_typed_errors(
    whole: bytes, flips: list[tuple[float, int]], keep: float
):
    data = bytearray(whole)
    for place, mask in flips:
        data[int(place * (len(data) - 1))] ^= mask
    data = data[: max(32, int(keep * len(data)))]
    try:
        decode(bytes(data), VideoParameters(rate=3.0), 2)
    except TriptychError:
        pass

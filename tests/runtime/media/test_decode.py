"""Items through the real pool: right arrays, bombs refused with memory level, one video over several processes, rubbish that kills nobody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.media import files
from tests.runtime.media.pools import peak_bytes, processor_seconds, with_pool
from triptych.runtime.core.errors import InvalidRequestError, Status, TriptychError
from triptych.runtime.media.decode import (
    AudioParameters,
    Decoded,
    ImageParameters,
    MediaDecoder,
    Parameters,
    identity,
)
from triptych.runtime.media.errors import (
    CorruptMediaError,
    DecodeTimeoutError,
    MediaError,
    MediaKindError,
    MediaLimitError,
    MissingDecoderError,
)
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.pool import DecoderPool, Ticket
from triptych.runtime.media.process import Job
from triptych.runtime.media.sniff import Kind
from triptych.runtime.media.source import MediaInput, from_bytes
from triptych.runtime.media.video_plan import VideoParameters

REAL = "triptych.runtime.media.operations:OPERATIONS"
LIMITS = MediaLimits()


def item(data: bytes) -> MediaInput:
    return from_bytes(data, LIMITS)


async def error_of(decoder: MediaDecoder, what: MediaInput, parameters: Parameters | None = None) -> TriptychError:
    try:
        await decoder.decode(what, parameters)
    except TriptychError as error:
        return error
    raise AssertionError("no error")


def test_each_kind_becomes_its_array():
    picture, wave = files.picture(), files.sine(0.5, 16000)
    video = files.video_file(files.video_frames(20))

    async def body(pool: DecoderPool) -> list[Decoded]:
        decoder = MediaDecoder(pool, LIMITS)
        items = (files.image_file(picture), files.sound_file(wave, 16000, subtype="FLOAT"), video)
        return list(await asyncio.gather(*(decoder.decode(item(data)) for data in items)))

    image, sound, frames = with_pool(body, operations=REAL)
    assert [decoded.kind for decoded in (image, sound, frames)] == list(Kind)
    np.testing.assert_array_equal(image.array, picture)
    np.testing.assert_array_equal(sound.array, wave)
    assert frames.times == (0.0, 1.0) and frames.array.shape == (2, 48, 64, 3)  # one frame a second unless asked
    assert not any(decoded.array.flags.writeable for decoded in (image, sound, frames))


def test_one_video_over_several_processes_is_the_sequential_one():
    data = files.video_file(files.video_frames(60))
    times, frames = files.sequential(data)

    async def body(pool: DecoderPool) -> None:
        used: list[str] = []
        submit = pool.submit

        def watched(jobs: Sequence[Job], *, follows: bool = False) -> list[Ticket]:
            used.extend(job.operation for job in jobs)
            return submit(jobs, follows=follows)

        pool.submit = watched  # type: ignore[method-assign]
        decoder = MediaDecoder(pool, LIMITS, part_frames=10)
        whole, some = await asyncio.gather(
            decoder.decode(item(data), VideoParameters()), decoder.decode(item(data), VideoParameters(rate=2.0))
        )
        assert used.count("video_frames") > 3
        np.testing.assert_array_equal(whole.array, frames)
        np.testing.assert_allclose(whole.times, times)
        np.testing.assert_array_equal(some.array, frames[::5])

    with_pool(body, operations=REAL, processes=3)


def test_bombs_are_refused_within_a_second_with_memory_level():
    """A PNG of 2.5 gigapixels; animations of thousands of frames are decoded to their first; a minute of nothing as FLAC."""
    bomb = files.png_bomb(50_000, 50_000)
    silence = files.sound_file(np.zeros(8000 * 120, np.int16), 8000, "FLAC")
    animations = [files.animation(format, 3000) for format in ("GIF", "WEBP", "PNG")]
    assert max(map(len, (bomb, silence))) < 60_000

    async def body(pool: DecoderPool) -> None:
        decoder = MediaDecoder(pool, replace(LIMITS, audio_seconds=60.0))
        await decoder.decode(item(files.image_file(files.picture(500, 500))))
        before, pids = peak_bytes(pool.pids[0]), pool.pids
        for data in (bomb, silence, *animations):
            began = processor_seconds(pids[0])  # the machine may be busy with other things
            if data in animations:
                assert (await decoder.decode(item(data))).array.shape == (6, 8, 3)
            else:
                assert isinstance(await error_of(decoder, item(data)), MediaLimitError)
            assert processor_seconds(pids[0]) - began < 1.0
        assert peak_bytes(pool.pids[0]) - before < 8 * 2**20
        assert pool.pids == pids and pool.replaced == 0

    with_pool(body, operations=REAL)


def test_an_image_that_needs_more_memory_than_a_process_may_have_fails_alone():
    large = files.image_file(np.zeros((5000, 5000, 3), np.uint8), compress_level=1)

    async def body(pool: DecoderPool) -> None:
        decoder = MediaDecoder(pool, LIMITS)
        error = await error_of(decoder, item(large))
        assert isinstance(error, MediaError) and "memory" in error.message
        assert (await decoder.decode(item(files.image_file(files.picture())))).array.shape == (30, 40, 3)
        assert pool.replaced == 0

    with_pool(body, operations=REAL, memory_bytes=2**26)


def test_rubbish_kills_no_process():
    """Truncations at many places and flipped bytes, of every type, through the real processes."""
    frames = files.video_frames(12)
    wave = files.sine(0.2, 16000)
    wholes = [files.image_file(files.picture(), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    wholes += [files.sound_file(wave, 16000, format) for format in ("WAV", "FLAC", "OGG", "MP3")]
    wholes += [files.video_file(frames), files.video_file(frames, "libvpx", "webm", options={"deadline": "realtime"})]
    rng = random.Random(7)

    def damaged(whole: bytes) -> list[bytes]:
        cuts = [whole[: len(whole) * n // 9] for n in range(1, 9)] + [whole[:-1]]
        flipped = []
        for _ in range(9):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(12, len(data))] ^= rng.randint(1, 255)
            flipped.append(bytes(data))
        return cuts + flipped

    async def body(pool: DecoderPool) -> None:
        decoder = MediaDecoder(pool, LIMITS, part_frames=4)
        pids, refused = pool.pids, 0
        for whole in wholes:
            for data in damaged(whole):
                what = MediaInput(item(whole).type, data)
                parameters = VideoParameters() if what.kind is Kind.VIDEO else None
                try:
                    await decoder.decode(what, parameters)
                except TriptychError as error:
                    refused += 1
                    assert error.status is Status.INVALID_ARGUMENT, error
            assert (await decoder.decode(item(whole))).array.size  # the whole one still decodes in the same process
        assert refused > 60
        assert pool.pids == pids and pool.replaced == 0

    with_pool(body, operations=REAL, processes=2)


def test_what_takes_too_long_is_ended_and_said():
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3)).astype(np.uint8)
    slow = files.image_file(noise, compress_level=1)

    async def body(pool: DecoderPool) -> None:
        error = await error_of(MediaDecoder(pool, replace(LIMITS, decode_seconds=0.002)), item(slow))
        assert isinstance(error, DecodeTimeoutError) and "0.002 s" in error.message
        assert pool.replaced == 1
        assert (await MediaDecoder(pool, LIMITS).decode(item(slow))).array.shape == (1500, 1500, 3)

    with_pool(body, operations=REAL)


def test_limits_are_those_of_the_decoder_and_name_what_was_wrong():
    video = files.video_file(files.video_frames(20))

    async def body(pool: DecoderPool) -> None:
        tight = replace(
            LIMITS, image_pixels=1000, video_frames=10, sampled_frames=3, audio_seconds=0.1, item_bytes=50_000
        )
        decoder = MediaDecoder(pool, tight)
        assert "40 x 30" in (await error_of(decoder, item(files.image_file(files.picture())))).message
        assert "0.1 s" in (await error_of(decoder, item(files.sound_file(files.sine(0.5, 8000), 8000)))).message
        assert "64 x 48" in (await error_of(decoder, item(video))).message
        tight = MediaDecoder(pool, replace(tight, image_pixels=10_000))
        assert "20 frames" in (await error_of(tight, item(video))).message
        tight = MediaDecoder(pool, replace(LIMITS, sampled_frames=3))
        assert "expected at most 3" in (await error_of(tight, item(video), VideoParameters())).message
        large = item(files.image_file(np.zeros((200, 200, 3), np.uint8), compress_level=0))
        assert isinstance(await error_of(decoder, large), MediaLimitError)
        wrong = await error_of(decoder, item(video), ImageParameters())
        assert isinstance(wrong, MediaKindError) and "video/mp4" in wrong.message

    with_pool(body, operations=REAL)


def test_the_items_of_a_request_come_in_order_and_errors_name_the_item():
    pictures = [files.picture(20 + n, 10, seed=n) for n in range(6)]
    good: list[tuple[MediaInput, Parameters | None]] = [(item(files.image_file(picture)), None) for picture in pictures]
    sound = (item(files.sound_file(files.sine(0.1, 16000), 16000)), AudioParameters(8000))
    video = (item(files.video_file(files.video_frames(12))), VideoParameters(count=3))
    broken = MediaInput(good[0][0].type, good[0][0].data[:-30])

    async def body(pool: DecoderPool) -> None:
        decoder = MediaDecoder(pool, LIMITS, part_frames=2)
        *images, heard, seen = await decoder.decode_all([*good, sound, video])
        for decoded, picture in zip(images, pictures, strict=True):
            np.testing.assert_array_equal(decoded.array, picture)
        assert heard.array.shape == (800,) and len(seen.times) == 3
        assert await decoder.decode_all([]) == []
        with pytest.raises(CorruptMediaError, match="media item 3 of 4: this image/png"):
            await decoder.decode_all([*good[:2], (broken, None), (broken, None)])
        with pytest.raises(MediaKindError, match="media item 2 of 2: "):
            await decoder.decode_all([good[0], (sound[0], ImageParameters())])
        with pytest.raises(MediaLimitError, match="6 media items"):
            await MediaDecoder(pool, replace(LIMITS, request_items=5)).decode_all(good)
        task = asyncio.create_task(decoder.decode_all(good))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert pool.waiting == 0

    with_pool(body, operations=REAL, processes=2)


def test_operations_of_ones_own_table_see_the_item_and_their_options():
    async def body(pool: DecoderPool) -> None:
        decoder = MediaDecoder(pool, LIMITS)
        what = item(files.image_file(files.picture()))
        reply = await decoder.run(what, "echo", {})
        assert reply.array.tobytes() == what.data
        image = await decoder.run(what, "image", {})
        np.testing.assert_array_equal(image.array, files.picture())

    with_pool(body, operations="tests.runtime.media.rough_and_real:OPERATIONS")


def test_a_cancelled_video_leaves_nothing_behind():
    data = files.video_file(files.video_frames(60))

    async def body(pool: DecoderPool) -> None:
        decoder = MediaDecoder(pool, LIMITS, part_frames=5)
        for wait in (0.0, 0.005, 0.02, 0.05):
            task = asyncio.create_task(decoder.decode(item(data), VideoParameters()))
            await asyncio.sleep(wait)
            task.cancel()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError | Decoded)
            assert pool.waiting == 0
        assert (await decoder.decode(item(data), VideoParameters(count=2))).array.shape == (2, 48, 64, 3)

    with_pool(body, operations=REAL, processes=2)


def test_a_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    from triptych.runtime.media import operations

    monkeypatch.setattr(operations, "_no_audio", ImportError("No module named 'soxr'"))
    monkeypatch.setattr(operations, "_no_video", ImportError("No module named 'av'"))
    for operation in ("audio", "video_index", "video_frames"):
        with pytest.raises(MissingDecoderError, match=r"triptych\[media\].*No module named") as caught:
            operations.OPERATIONS[operation](bytearray(), {})
        assert caught.value.status is Status.UNIMPLEMENTED


def test_the_identity_of_an_item_is_its_bytes_and_what_is_made_of_them():
    picture = item(files.image_file(files.picture()))
    other = item(files.image_file(files.picture(seed=1)))
    sound = item(files.sound_file(files.sine(0.1, 8000), 8000))
    ids = {
        identity(picture, ImageParameters()),
        identity(other, ImageParameters()),
        identity(picture, ImageParameters(), "clip/224"),
        identity(picture, ImageParameters(), "clip/336"),
        identity(sound, AudioParameters()),
        identity(sound, AudioParameters(8000)),
        identity(sound, VideoParameters()),
        identity(sound, VideoParameters(rate=1.0)),
        identity(sound, VideoParameters(size=(2, 3))),
    }
    assert len(ids) == 9 and all(len(id) == 32 for id in ids)
    again = MediaInput(picture.type, bytes(picture.data), "image/png")
    assert identity(again, ImageParameters()) == identity(picture, ImageParameters())


def test_rates_of_sound_are_bounded():
    for rate in (0, 999, 10**6):
        with pytest.raises(InvalidRequestError):
            AudioParameters(rate)

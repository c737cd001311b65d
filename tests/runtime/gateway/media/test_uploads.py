"""Media are uploaded once and used by handle, by whoever uploaded them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from tests.runtime.gateway.calls import PATIENCE, ask, finish, run, until
from tests.runtime.gateway.media.toys import ToyProcessor, vlm
from tests.runtime.gateway.toy_cluster import Cluster, cluster
from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.media import MediaKind
from triptych.runtime.gateway.media.uploads import MAX_COMING, MAX_OWN
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.wire.auth import bearer_interceptor, bearer_metadata
from triptych.runtime.wire.rate import Rate

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


class PngProcessor(ToyProcessor):
    """Takes anything that the first bytes say is a PNG."""

    def kind(self, data: bytes, declared: str) -> MediaKind:
        return MediaKind.IMAGE

    async def process(self, data: bytes, kind: MediaKind, identity: str):
        return await super().process(b"IMG1", kind, identity)


def messages(data: bytes, type: str = "image/png", size: int = 0, pieces: int = 3) -> list[pb.UploadMediaRequest]:
    step = len(data) // pieces + 1
    header = pb.UploadMediaRequest(header=pb.MediaUpload(type=type, size=size))
    return [header, *(pb.UploadMediaRequest(data=data[at : at + step]) for at in range(0, len(data), step))]


async def upload(
    c: Cluster, stream: Sequence[pb.UploadMediaRequest], token: str | None = None
) -> pb.UploadMediaResponse:
    return await c.stub.UploadMedia(iter(stream), metadata=bearer_metadata(token))


async def use(c: Cluster, handle: str, token: str | None = None) -> grpc.StatusCode:
    request = ask("a", media=[pb.Media(handle=handle)], sampling={"max_tokens": 2})
    return (await finish(c.stub.Generate(request, metadata=bearer_metadata(token)))).code


def test_an_upload_is_used_by_its_handle_until_it_is_deleted():
    async def body():
        async with cluster(vlm(), processor=PngProcessor()) as c:
            made = await upload(c, messages(PNG, size=len(PNG)))
            assert (made.type, made.size, made.expires_in) == ("image/png", len(PNG), 3600.0)
            assert await use(c, made.handle) is grpc.StatusCode.OK
            assert await use(c, made.handle) is grpc.StatusCode.OK
            await c.stub.DeleteMedia(pb.DeleteMediaRequest(handle=made.handle))
            assert await use(c, made.handle) is grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await c.stub.DeleteMedia(pb.DeleteMediaRequest(handle=made.handle))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(body())


def test_a_handle_is_of_no_use_to_another_client():
    async def body():
        async with cluster(vlm(), interceptors=[bearer_interceptor("mine", "yours")], processor=PngProcessor()) as c:
            made = await upload(c, messages(PNG), "mine")
            assert await use(c, made.handle, "yours") is grpc.StatusCode.NOT_FOUND
            assert await use(c, made.handle, "mine") is grpc.StatusCode.OK

    run(body())


def test_uploads_at_once_are_bounded_and_leave_nothing_when_they_are_cut_off():
    async def body():
        tokens = [f"client {number}" for number in range(MAX_COMING // MAX_OWN + 1)]
        async with cluster(vlm(), interceptors=[bearer_interceptor(*tokens)], processor=PngProcessor()) as c:

            async def refused(token: str) -> str:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await upload(c, messages(PNG), token)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                return caught.value.details() or ""

            calls = []
            for token in tokens[:-1]:
                calls += [c.stub.UploadMedia(metadata=bearer_metadata(token)) for _ in range(MAX_OWN)]
                for call in calls[-MAX_OWN:]:
                    await call.write(messages(PNG)[0])
                    await call.write(messages(PNG)[1])
                count = len(calls)
                await until(lambda count=count: c.gateway._service._uploads()._coming.total() == count)
                if token == tokens[0]:
                    assert (
                        await refused(token)
                        == "4 uploads are coming in from this client, which is the most; retry later"
                    )
                    assert (await upload(c, messages(PNG), tokens[-1])).size == len(PNG), "others are not kept out"
            assert "16 uploads are coming in, which" in await refused(tokens[-1])
            for call in calls:
                call.cancel()
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        made = await upload(c, messages(PNG), tokens[0])
                        break
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                        await asyncio.sleep(0.02)
            assert await use(c, made.handle, tokens[0]) is grpc.StatusCode.OK

    run(body())


def test_a_server_that_is_about_to_stop_takes_no_uploads():
    async def body():
        async with cluster(vlm(), processor=PngProcessor()) as c:
            made = await upload(c, messages(PNG))
            await c.gateway.drain(0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await upload(c, messages(PNG))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await c.stub.DeleteMedia(pb.DeleteMediaRequest(handle=made.handle))

    run(body())


def test_uploading_and_deleting_count_against_a_clients_rate():
    async def body():
        async with cluster(vlm(), processor=PngProcessor(), rate=Rate(0.001, 2)) as c:
            made = await upload(c, messages(PNG))
            await c.stub.DeleteMedia(pb.DeleteMediaRequest(handle=made.handle))
            for call in (upload(c, messages(PNG)), c.stub.DeleteMedia(pb.DeleteMediaRequest(handle="guess"))):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(body())


def test_bad_uploads_are_refused_and_leave_nothing():
    rows = {
        "no header": (messages(PNG)[1:], "the first message is no header"),
        "two headers": ([messages(PNG)[0]] * 2, "a message after the first one has no data"),
        "nothing": ([], "the first message is no header"),
        "cut off": (messages(PNG, size=100), "data: 48 bytes came; the header says 100"),
        "more than promised": (messages(PNG, size=10), "data: more than the 10 bytes came"),
        "empty": (messages(b""), "the item is empty"),
        "too large": (messages(bytes(4000)), "data has "),
        "said to be too large": (messages(PNG, size=5000), "data has 5000 bytes; expected at most 2000"),
        "another type": (messages(PNG, "image/gif"), "the item is declared as 'image/gif'"),
        "no medium": (messages(b"%PDF-1.7", ""), "the item is a PDF"),
    }

    async def body():
        limits = MediaLimits(item_bytes=2000, request_bytes=2000)
        async with cluster(vlm(), processor=PngProcessor(), media=limits) as c:
            for name, (stream, message) in rows.items():
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await upload(c, stream)
                assert caught.value.code() is INVALID, name
                assert message in (caught.value.details() or ""), (name, caught.value.details())
            assert await use(c, (await upload(c, messages(PNG))).handle) is grpc.StatusCode.OK

    run(body())

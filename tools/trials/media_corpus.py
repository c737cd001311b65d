"""What peers say about media: requests with files, uploads, pixels at worker doors, and the reports of stages that encode."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from triptych.proto.v1 import common_pb2 as common
from triptych.proto.v1 import control_pb2 as control
from triptych.proto.v1 import inference_pb2 as inference
from triptych.proto.v1 import worker_pb2 as worker
from triptych.tools.trials.strange_media import file

TYPES = ("", "image", "image/png", "image/jpeg", "audio", "video/mp4", "text/html", "nonsense")
HANDLES = ("", "media-", "media-0", "media-" + "f" * 32, "../../etc/passwd", "x" * 5000)
MANY = 70  # more items than a request may have
PATCH = 48  # numbers of a patch of the toy model


def add_media(request: inference.GenerateRequest, placeholder: str, rng: random.Random) -> None:
    """Give a request files or handles: as many as its prompt has places, or not."""
    count = MANY if rng.random() < 0.01 else rng.choice([1, 1, 1, 2, 3])
    if request.WhichOneof("input") == "chat" and rng.random() < 0.8:
        message = request.chat.messages[0]
        message.content = ""
        for _ in range(count):
            message.parts.add(media=medium(rng))
        message.parts.add(text=rng.choice(["What?", placeholder, ""]))
        return
    if request.WhichOneof("input") == "prompt" and rng.random() < 0.8:
        request.prompt = placeholder * rng.choice([count, count, count, 0, count + 1]) + request.prompt
    request.media.extend(medium(rng) for _ in range(count))


def medium(rng: random.Random) -> inference.Media:
    declared = rng.choice(TYPES) if rng.random() < 0.2 else ""
    if rng.random() < 0.1:
        return inference.Media(handle=rng.choice(HANDLES), type=declared)
    return inference.Media(data=file(rng), type=declared)


class Upload:
    """One upload: a header, then pieces. It may say another size, send another header, or never come to its end."""

    def __init__(self, rng: random.Random):
        self._data, self._at, self._begun = file(rng), 0, False

    def __call__(self, rng: random.Random) -> inference.UploadMediaRequest:
        if not self._begun:
            self._begun = True
            size = len(self._data) if rng.random() < 0.6 else rng.choice([0, 1, 10**9, 2**63])
            return inference.UploadMediaRequest(header=inference.MediaUpload(type=rng.choice(TYPES), size=size))
        begin, self._at = self._at, self._at + rng.choice([0, 10, 1000, *[len(self._data)] * 3])
        return inference.UploadMediaRequest(data=self._data[begin : self._at])


class Pixels:
    """One item at a worker's door. Nobody has asked for it, its shape may be wrong, its owner gone, its checksum another's; pieces may never end."""

    def __init__(self, instances: Sequence[common.InstanceInfo], rng: random.Random):
        encoders = [info.ref for info in instances if "encode" in info.roles] or [info.ref for info in instances]
        self._owner = rng.choice(encoders or [common.InstanceRef(id="a", epoch=1)])
        self._begun = False
        self._data = rng.randbytes(16 * PATCH)

    def __call__(self, rng: random.Random) -> worker.PutMediaRequest:
        if self._begun:
            size = rng.choice([0, 1, 256, len(self._data), len(self._data) + 1])
            return worker.PutMediaRequest(data=self._data[:size])
        self._begun = True
        header = worker.MediaHeader(
            owner=self._owner,
            hash=rng.choice(["", "unasked", f"{rng.getrandbits(64):x}", "h" * 200]),
            shape=[16, PATCH],
            grid=[1, 4, 4],
            checksum=zlib.crc32(self._data) if rng.random() < 0.7 else rng.getrandbits(32),
        )
        if rng.random() < 0.2:
            header.owner.epoch = rng.getrandbits(62)
        if rng.random() < 0.3:
            header.grid[:] = rng.choice([[], [1], [0, 0, 0], [1, 4, 4, 4], [2**31, 2**31, 2**31], [1, 1, 16]])
        if rng.random() < 0.3:
            header.shape[:] = rng.choice([[], [16], [0, 0], [2**31, 2**31], [PATCH, 16], [16, PATCH, 1]])
        return worker.PutMediaRequest(header=header)


def items(length: int, rng: random.Random) -> list[common.MediaItem]:
    """Items of a prompt of `length` tokens, as one gateway tells the inside; they may not fit it, or each other."""
    found, at = [], 0
    for _ in range(rng.choice([1, 1, 2, 5])):
        tokens = rng.choice([1, 16, 16, 16, 0, length, 2**31])
        found.append(
            common.MediaItem(
                hash=rng.choice(["", "unasked", f"{rng.getrandbits(64):x}"]),
                kind=rng.choice(["image", "image", "audio", "nonsense"]),
                offset=rng.choice([at, at, 0, length, 2**32 - 1]),
                tokens=tokens,
                patches=rng.choice([17, 17, 0, 2**31]),
                grid=rng.choice([[1, 4, 4], [], [0, 0, 0], [1, 1, tokens]]),
            )
        )
        at += min(tokens, length)
    return found


def media_report(request: str, someone: common.InstanceRef, address: str, rng: random.Random) -> control.TaskReport:
    """What an instance might say of media that nobody asked it about."""
    attempt = rng.choice([1, 2])
    match rng.randrange(3):
        case 0:
            wanted = control.MediaWanted(request=request, items=[rng.choice([0, 1, 2**31])], attempt=attempt)
            return control.TaskReport(media_wanted=wanted)
        case 1:
            handle = common.Handle(owner=someone, address=address, key=rng.getrandbits(64), digest="d")
            staged = control.EncodeStaged(request=request, handle=handle, lacking=[rng.choice([0, 7])], attempt=attempt)
            return control.TaskReport(encode_staged=staged)
        case _:
            return control.TaskReport(encode_done=control.EncodeDone(request=request, encoded=3, attempt=attempt))

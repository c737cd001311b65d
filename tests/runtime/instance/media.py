"""Requests with media, and commands about them, for tests."""

from __future__ import annotations

from dataclasses import replace

from tests.runtime.instance.cluster import Node, config, request
from tests.runtime.instance.fake_device import expected_outputs
from triptych.runtime.core.handle import Handle
from triptych.runtime.core.instance import InstanceRef, Role
from triptych.runtime.core.media import MediaItem, MediaKind
from triptych.runtime.core.request import Request
from triptych.runtime.core.tasks import EncodeStaged, FeedMedia, MediaWanted, StageTimes, StartEncode, StartLocal
from triptych.runtime.instance.config import InstanceConfig
from triptych.runtime.instance.messages import MediaArrived, MediaImported, StartPull
from triptych.runtime.instance.plan import Pool

E, P, D = Role.ENCODE, Role.PREFILL, Role.DECODE
PLACEHOLDER = 96
ELSEWHERE = InstanceRef("e", 1)


def media_config(name: str = "i", roles: str = "EPD", **changes) -> InstanceConfig:
    """Pages of 4; a media pool of 15 usable pages; at most 16 patches a step."""
    chosen = frozenset({"E": E, "P": P, "D": D}[letter] for letter in roles)
    media = {"media_pages": 16, "encode_patches": 16, "media_digest": "md", "roles": chosen}
    return config(name, **(media | changes))


def item(name: str, offset: int, tokens: int = 6, patches: int = 8) -> MediaItem:
    return MediaItem(name, MediaKind.IMAGE, offset, tokens, patches, (1, 1, tokens))


def heard(name: str, tokens: int = 6, patches: int = 8) -> MediaItem:
    """A recording that every token attends to."""
    return MediaItem(name, MediaKind.AUDIO, 0, tokens, patches, (1, 1, tokens), attended=True)


def asked(name: str, *items: MediaItem, text: int = 3, **params) -> Request:
    """A prompt of the given items and text before, between and behind them: `text` tokens behind the last."""
    length = (items[-1].end if items else 0) + text
    tokens = [(sum(map(ord, name)) + i * 7) % 89 + 1 for i in range(length)]
    for one in items:
        tokens[one.offset : one.end] = [PLACEHOLDER] * one.taken
    deadline = params.pop("deadline", None)
    salt = params.pop("salt", "")
    return replace(request(name, tuple(tokens), deadline=deadline, salt=salt, **params), media=items)


def encode(node: Node, req: Request, *items: int, ttl: float = 2.0, lease: float = 5.0) -> EncodeStaged:
    """The task is taken."""
    node.command(StartEncode(req, items or tuple(range(len(req.media))), ttl, lease))
    return node.reports(EncodeStaged)[-1]


def bring(node: Node, *names: str) -> None:
    """The pixels are there."""
    for name in names:
        node.device.shelf.add(name)
        node.send(MediaArrived(name))


def feed(node: Node, req: Request, *items: int, key: int = 77, owner: InstanceRef = ELSEWHERE) -> list[StartPull]:
    """What is pulled once the prompt's instance is told where the items are."""
    messages = node.command(FeedMedia(req.id, Handle(owner, "host:e", key, "md"), items, req.attempt))
    return [message for message in messages if isinstance(message, StartPull)]


def pulled(node: Node, req: Request, pull: StartPull, *names: str) -> None:
    """The pull brings the items `names`, in the order of its pages."""
    assert pull.pool is Pool.MEDIA
    size, pages = node.config.page_size, list(pull.pages)
    sizes = {one.hash: one.tokens for one in req.media}
    for name in names:
        for number in range(sizes[name]):
            page, place = divmod(number, size)
            node.device.embeddings[pages[page]][place] = (name, number)
        del pages[: -(-sizes[name] // size)]
    assert not pages
    node.send(MediaImported(req.id, pull.source_key, StageTimes(), req.attempt))


def wanted(node: Node) -> list[tuple[str, tuple[int, ...]]]:
    return [(report.request, report.items) for report in node.reports(MediaWanted)]


def local(node: Node, req: Request) -> list:
    return node.command(StartLocal(req))


def prompt_node(roles: str = "PD", **changes) -> Node:
    return Node(media_config("i", roles, **changes))


def serve(node: Node, req: Request, key: int = 77) -> None:
    """The request is run; what it wants is fed in one pull, if anything."""
    before = len(node.reports(MediaWanted))
    local(node, req)
    for report in node.reports(MediaWanted)[before:]:
        (pull,) = feed(node, req, *report.items, key=key)
        pulled(node, req, pull, *(req.media[index].hash for index in report.items))
    node.run()


def check(node: Node, req: Request) -> None:
    for sample in range(req.sampling.n):
        outputs, _ = expected_outputs(req, node.config.max_model_len, sample)
        assert [token.token for token in node.tokens(req.id, sample)] == outputs


def assert_free(node: Node) -> None:
    held = node.core.resources()
    assert held.idle, held
    assert held.free_media_pages + held.cached_media_pages == node.config.media_pages - 1

"""Encode, prefill and decode instances under whatever happens in whatever order: owners are unique after every event (the
node audits itself), no task is lost or ends twice, what is computed is right, and at the end everything is free."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.media import asked, heard, item, media_config
from tests.runtime.instance.media_cluster import LEASE, MediaCluster
from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Request
from triptych.runtime.instance.composer import DefaultComposer, ShortestFirst, TakingTurns
from triptych.runtime.instance.messages import Command

TOPOLOGIES = (
    ("E", "P", "D"),
    ("EPD",),
    ("EP", "D"),
    ("E", "PD"),
    ("E", "E", "P", "D"),
    ("EP", "EP", "D"),
    ("E", "EPD", "P"),
    ("ED", "P"),
    ("E", "PD", "PD"),
)


def _build(luck: random.Random, topology: tuple[str, ...], trouble: float, roomy: bool = False) -> MediaCluster:
    nodes = []
    for index, roles in enumerate(topology):
        media = luck.choice([6, 8, 12, 30]) if not roomy else 60
        sizes = {
            "num_pages": luck.choice([14, 20, 40]) if not roomy else 64,
            "media_pages": media if set(roles) & set("EP") or roomy else luck.choice([0, media, media]),
            "chunk_tokens": luck.choice([1, 3, 8, 64]),
            "max_num_seqs": luck.randint(3, 6) if not roomy else 24,
            "export_pages": luck.randint(1, 3),
            "prefix_cache": luck.random() < 0.8,
            "max_waiting": 3 if luck.random() < 0.2 and not roomy else 20,
            "max_model_len": 48,
        }
        composer = luck.choice((TakingTurns, DefaultComposer, ShortestFirst))()
        nodes.append(Node(media_config(f"i{index}", roles, **sizes), composer=composer, seed=index))
    return MediaCluster(nodes, luck, trouble)


def _request(luck: random.Random, name: str) -> Request:
    items, at = [], luck.randint(0, 3)
    if luck.random() < 0.4:
        for which in luck.choices(range(3), k=luck.choice([1, 1, 2])):
            items.append(heard(f"a{which}", tokens=4 + 3 * which, patches=4 + which))
    for _ in range(luck.choice([0, 1, 1, 2, 3]) if not items or luck.random() < 0.3 else 0):
        which = luck.randrange(5)
        items.append(item(f"m{which}", at, tokens=1 + 2 * which, patches=3 + which))
        at = items[-1].end + luck.randint(0, 3)
    params: dict = {"max_tokens": luck.choice([1, 2, 5, 12]), "n": luck.choice([1, 1, 2]), "seed": luck.randint(0, 2)}
    if luck.random() < 0.2:
        params["prompt_logprobs"] = 1
    least = 0 if any(not one.attended for one in items) else 1
    return asked(luck.choice(["q", "q", name]), *items, text=luck.randint(least, 3), **params)


def test_what_a_slow_prefill_has_no_room_for_is_encoded_once_however_long_it_waits():
    names = ["E", "P", "D"]
    sizes = ({"media_pages": 40}, {"media_pages": 4}, {"media_pages": 0})
    nodes = [
        Node(media_config(f"i{index}", roles, num_pages=64, max_num_seqs=24, max_model_len=48, **size), seed=index)
        for index, (roles, size) in enumerate(zip(names, sizes, strict=True))
    ]
    cluster = MediaCluster(nodes, random.Random(1))
    journals = [
        cluster.submit(asked(f"r{number}", item(f"m{number}", 0, tokens=9), max_tokens=2)) for number in range(8)
    ]
    encoder, prompts, _ = nodes
    for _ in range(200):  # everything but the steps of the prefill instance, for five leases
        for node in nodes:
            while cluster.commands[node]:
                cluster.send(node, Command(cluster.commands[node].popleft()))
            while cluster.reports[node]:
                cluster._report(node, cluster.reports[node].popleft())
        while cluster.pixels:
            cluster.bring(cluster.pixels.pop(0))
        cluster.ready(encoder)
        cluster.done(encoder)
        for pull in list(cluster.pulls):
            cluster.move(pull)
        cluster.advance(5 * LEASE / 200)
    assert cluster.counts["encoded"] == 8 and prompts.core.load().waiting == 8
    cluster.settle()
    for journal in journals:
        assert journal.over is Status.OK, journal.reason
        cluster.check(journal)
    assert cluster.counts["encoded"] == cluster.counts["wanted"] == cluster.counts["pulled"] == 8


@pytest.mark.parametrize("seed", range(28))
def test_a_storm(seed):
    luck = random.Random(seed)
    cluster = _build(luck, TOPOLOGIES[seed % len(TOPOLOGIES)], trouble=0.03)
    count = 0
    for _ in range(700):
        happening = luck.random()
        if happening < 0.03:
            count += 1
            req = _request(luck, f"r{count}")
            cluster.submit(_named(req, f"r{count}"))
        elif happening < 0.036 and count:
            cluster.abort(f"r{luck.randint(max(1, count - 4), count)}")
        elif happening < 0.0375:
            cluster.lose(luck.choice(cluster.nodes))
        elif happening < 0.05:
            cluster.advance(luck.choice([0.1, 0.5, 1.5]))
        else:
            cluster.act()
    cluster.trouble = 0.0
    _finish(cluster)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids="-".join)
@pytest.mark.parametrize("seed", range(2))
def test_without_trouble_every_request_ends_well(topology, seed):
    """Whatever the order of events and however little room there is: nothing waits for ever, no item fails to come."""
    luck = random.Random(seed)
    cluster = _build(luck, topology, trouble=0.0, roomy=True)
    for count in range(12):
        cluster.submit(_named(_request(luck, f"r{count}"), f"r{count}"))
        for _ in range(60):
            cluster.act()
    cluster.settle()
    assert [journal.over for journal in cluster.journals.values()] == [Status.OK] * 12, [
        journal.reason for journal in cluster.journals.values()
    ]
    _finish(cluster)


def _named(req: Request, name: str) -> Request:
    return replace(req, id=name)


def _finish(cluster: MediaCluster) -> None:
    """Everything comes to an end, and then nothing is held."""
    cluster.settle()
    for _ in range(60):  # leases, grants and waits for pixels run out; what waited for their room goes on
        if all(journal.over is not None for journal in cluster.journals.values()):
            break
        cluster.advance(1.0)
        cluster.settle()
    stuck = [journal for journal in cluster.journals.values() if journal.over is None]
    assert not stuck, stuck
    for _ in range(10):
        cluster.advance(1.0)
        cluster.settle()
    for journal in cluster.journals.values():
        cluster.check(journal)
    cluster.assert_idle()

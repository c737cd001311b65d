"""Scheduler and instances together, under whatever happens in whatever order: every request ends once, with the right tokens, and nothing is held."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.runtime.instance.cluster import Node
from tests.runtime.instance.media import asked, heard, item, media_config
from tests.runtime.scheduler.media_instances import Served
from triptych.runtime.core.errors import Status
from triptych.runtime.core.request import Request
from triptych.runtime.instance.composer import DefaultComposer, TakingTurns

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


def build(luck: random.Random, topology: tuple[str, ...], trouble: float, roomy: bool = False) -> Served:
    nodes = []
    for index, roles in enumerate(topology):
        media = 60 if roomy else luck.choice([6, 8, 12, 30])
        sizes = {
            "num_pages": 64 if roomy else luck.choice([14, 20, 40]),
            "media_pages": media if set(roles) & set("EP") or roomy else luck.choice([0, media, media]),
            "chunk_tokens": luck.choice([3, 8, 64]),
            "max_num_seqs": 24 if roomy else luck.randint(3, 6),
            "max_waiting": 20,
            "max_model_len": 48,
        }
        composer = TakingTurns() if luck.random() < 0.4 else DefaultComposer()
        nodes.append(Node(media_config(f"i{index}", roles, **sizes), composer=composer, seed=index))
    return Served(nodes, luck, trouble)


def some_request(luck: random.Random, name: str, least: int = 1) -> Request:
    """It draws at least `least` tokens."""
    items, at = [], luck.randint(0, 3)
    if luck.random() < 0.4:
        for which in luck.choices(range(3), k=luck.choice([1, 1, 2])):
            items.append(heard(f"a{which}", tokens=4 + 3 * which, patches=4 + which))
    for _ in range(luck.choice([0, 1, 1, 2, 3]) if not items or luck.random() < 0.3 else 0):
        which = luck.randrange(5)
        items.append(item(f"m{which}", at, tokens=1 + 2 * which, patches=3 + which))
        at = items[-1].end + luck.randint(0, 3)
    params: dict = {
        "max_tokens": max(least, luck.choice([1, 2, 5, 12])),
        "n": luck.choice([1, 1, 2]),
        "seed": luck.randint(0, 2),
    }
    text = 0 if any(not one.attended for one in items) else 1
    prompt = asked(luck.choice(["q", "q", name]), *items, text=luck.randint(text, 3), **params)
    return replace(prompt, id=name)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids="-".join)
@pytest.mark.parametrize("seed", range(2))
def test_without_trouble_every_request_ends_well(topology: tuple[str, ...], seed: int) -> None:
    luck = random.Random(seed)
    served = build(luck, topology, trouble=0.0, roomy=True)
    for count in range(12):
        # These wires tell a puller of a prompt that ended at its first token that its source is lost.
        served.submit(some_request(luck, f"r{count}", least=2))
        for _ in range(60):
            served.act()
    served.settle()
    assert {client.status for client in served.clients.values()} == {Status.OK}
    counters = served.scheduler.counters
    assert counters["encodes_started"] and not counters["interrupted"] and not counters["encodes_refused"]
    served.finish()


@pytest.mark.parametrize("seed", range(28))
def test_a_storm(seed: int) -> None:
    luck = random.Random(seed)
    served = build(luck, TOPOLOGIES[seed % len(TOPOLOGIES)], trouble=0.03)
    count = 0
    for _ in range(900):
        happening = luck.random()
        node = luck.choice(served.nodes)
        if happening < 0.03:
            count += 1
            served.submit(some_request(luck, f"r{count}"))
        elif happening < 0.036 and count:
            served.cancel(f"r{luck.randint(max(1, count - 4), count)}")
        elif happening < 0.0375:
            served.lose(node)
        elif happening < 0.040:
            served.cut(node)
        elif happening < 0.041:
            served.boot()
        elif happening < 0.053:
            served.advance(luck.choice([0.1, 0.2, 1.5]))
        elif node not in served.connected and luck.random() < 0.2:
            served.join(node)
        else:
            served.act()
    served.finish()
    counters = served.scheduler.counters
    assert counters["protocol_violations"] == 0

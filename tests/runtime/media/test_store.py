"""Uploads are found by their owner alone, for as long as the store promises, within its memory."""

from __future__ import annotations

import random
from typing import Any

import pytest

from triptych.runtime.core.errors import ConfigError, Status
from triptych.runtime.media.errors import MediaLimitError, MediaNotFoundError
from triptych.runtime.media.sniff import MediaType
from triptych.runtime.media.source import MediaInput
from triptych.runtime.media.store import ANONYMOUS, MediaStore, StoreConfig, owner_of

ALICE, BOB = owner_of("key-of-alice"), owner_of("key-of-bob")


def item(size: int, fill: int = 0) -> MediaInput:
    return MediaInput(MediaType.PNG, bytes([fill]) * size)


def store(store_bytes: int = 100, owner_bytes: int = 100, ttl: float = 10.0) -> MediaStore:
    return MediaStore(StoreConfig(store_bytes, owner_bytes, ttl, record_bytes=0))


def test_an_upload_is_found_by_its_handle_as_often_as_wanted():
    uploads = store()
    what = item(10, 7)
    handle = uploads.put(what, ALICE, now=0.0)
    assert all(uploads.get(handle, ALICE, now=float(now)) is what for now in range(5))
    assert (len(uploads), uploads.bytes) == (1, 10)


def test_handles_are_random_and_differ_for_the_same_bytes():
    uploads = store()
    handles = {uploads.put(item(1), ALICE, 0.0) for _ in range(50)}
    assert len(handles) == 50 and all(len(handle) == len("media-") + 32 for handle in handles)


def test_what_belongs_to_somebody_else_is_answered_as_what_does_not_exist():
    uploads = store()
    handle = uploads.put(item(10), ALICE, 0.0)
    messages = []
    for owner, name in ((BOB, handle), (ANONYMOUS, handle), (ALICE, "media-" + "0" * 32), (ALICE, "")):
        for call in (uploads.get, uploads.delete):
            with pytest.raises(MediaNotFoundError) as caught:
                call(name, owner, 1.0)
            assert caught.value.status is Status.NOT_FOUND
            messages.append(caught.value.message.replace(name, "") if name else caught.value.message)
    assert len(set(messages)) == 1
    assert uploads.get(handle, ALICE, 1.0)


def test_time_to_live_runs_from_the_last_use():
    uploads = store(ttl=10.0)
    used, unused = uploads.put(item(1), ALICE, 0.0), uploads.put(item(1), ALICE, 0.0)
    uploads.get(used, ALICE, 8.0)
    uploads.expire(10.0)
    assert len(uploads) == 1
    assert uploads.get(used, ALICE, 17.9)
    with pytest.raises(MediaNotFoundError):
        uploads.get(unused, ALICE, 10.0)
    with pytest.raises(MediaNotFoundError):
        uploads.get(used, ALICE, 27.9)
    assert uploads.bytes == 0 and uploads.evicted == 0


def test_the_least_recently_used_goes_first():
    uploads = store(store_bytes=30)
    a, b, c = (uploads.put(item(10), owner, 0.0) for owner in (ALICE, BOB, ALICE))
    uploads.get(a, ALICE, 1.0)
    uploads.put(item(15), BOB, 2.0)
    assert uploads.get(a, ALICE, 3.0) and uploads.evicted == 2 and uploads.bytes == 25
    for handle, owner in ((b, BOB), (c, ALICE)):
        with pytest.raises(MediaNotFoundError):
            uploads.get(handle, owner, 3.0)


def test_an_owner_beyond_its_share_loses_its_own_items_only():
    uploads = store(store_bytes=100, owner_bytes=40)
    kept = uploads.put(item(10), ALICE, 0.0)
    handles = [uploads.put(item(20), BOB, 1.0 + n) for n in range(5)]
    assert uploads.get(kept, ALICE, 7.0)
    assert uploads.bytes == 50 and uploads.evicted == 3
    assert uploads.get(handles[-1], BOB, 7.0) and uploads.get(handles[-2], BOB, 7.0)


def test_what_could_never_fit_is_refused_and_evicts_nothing():
    uploads = store(store_bytes=100, owner_bytes=40)
    uploads.put(item(40), ALICE, 0.0)
    with pytest.raises(MediaLimitError, match="41 bytes; expected at most 40"):
        uploads.put(item(41), ALICE, 0.0)
    assert uploads.bytes == 40 and uploads.evicted == 0


def test_deleted_is_gone():
    uploads = store()
    handle = uploads.put(item(10), ALICE, 0.0)
    uploads.delete(handle, ALICE, 1.0)
    assert (len(uploads), uploads.bytes) == (0, 0)
    with pytest.raises(MediaNotFoundError):
        uploads.get(handle, ALICE, 1.0)


def test_owners_are_digests_of_keys():
    assert owner_of(None) == ANONYMOUS
    assert ALICE != BOB and "alice" not in ALICE and owner_of("key-of-alice") == ALICE
    assert owner_of(ANONYMOUS) != ANONYMOUS  # no key can pass for nobody's


def test_bounds_hold_whatever_happens():
    rng = random.Random(3)
    uploads = store(store_bytes=200, owner_bytes=90, ttl=5.0)
    live: list[tuple[str, str]] = []
    now = 0.0
    for _ in range(3000):
        now += rng.random()
        owner = rng.choice((ALICE, BOB, ANONYMOUS))
        match rng.randrange(4):
            case 0 | 1:
                live.append((uploads.put(item(rng.randint(1, 90)), owner, now), owner))
            case 2 if live:
                handle, mine = rng.choice(live)
                try:
                    uploads.get(handle, mine, now)
                except MediaNotFoundError:
                    live.remove((handle, mine))
            case 3 if live:
                handle, mine = live.pop(rng.randrange(len(live)))
                try:
                    uploads.delete(handle, mine, now)
                except MediaNotFoundError:
                    pass
        kept = uploads._items.values()
        assert uploads.bytes == sum(len(one.item.data) for one in kept) <= 200
        for name in (ALICE, BOB, ANONYMOUS):
            assert sum(len(one.item.data) for one in kept if one.owner == name) <= 90


def test_a_store_without_room_or_time_is_refused():
    settings: tuple[dict[str, Any], ...] = ({"store_bytes": 0}, {"owner_bytes": -1}, {"ttl": 0.0})
    for bad in settings:
        with pytest.raises(ConfigError):
            StoreConfig(**bad)

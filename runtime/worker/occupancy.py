"""The numbers of an instance's snapshot: what is held where, and what was moved. Names are stable."""

from __future__ import annotations

from collections.abc import Mapping

from triptych.runtime.engine.config import EngineConfig
from triptych.runtime.engine.shelf import MediaShelf
from triptych.runtime.instance.audit import Resources
from triptych.runtime.instance.media import MediaCounts
from triptych.runtime.instance.plan import Pool
from triptych.runtime.worker.ends import PoolEnds


def occupancy(
    resources: Resources, config: EngineConfig, ends: Mapping[Pool, PoolEnds], shelf: MediaShelf | None
) -> dict[str, int]:
    """Counts and bytes that are held now. Media entries are there where there is a media pool."""
    stats = [end.producer.stats for end in ends.values()]
    held = {
        "pages_total": config.num_pages - 1,
        "pages_free": resources.free_pages,
        "pages_cached": resources.cached_pages,
        "pages_sequence": resources.sequence_pages,
        "pages_staged": resources.staged_pages,
        "pages_reserved": resources.reserved_pages,
        "slots_total": config.max_num_seqs,
        "slots_free": resources.free_slots,
        "staged_keys": len(resources.staged_keys),
        "tasks": len(resources.tasks),
        "waiting": resources.waiting,
        "running": resources.running,
        "pulls": sum(end.consumer.pulls for end in ends.values()),
        "staging_keys": sum(stat.keys for stat in stats),
        "staging_bytes": sum(stat.staged_bytes for stat in stats),
    }
    if Pool.MEDIA in ends:
        held |= {
            "media_pages_total": config.media_pages - 1,
            "media_pages_free": resources.free_media_pages,
            "media_pages_cached": resources.cached_media_pages,
            "media_pages_held": resources.held_media_pages,
            "media_gathering": resources.gatherings,
        }
    if shelf is not None:
        held |= {"shelf_items": len(shelf), "shelf_bytes": shelf.nbytes}
    return held


def moved(ends: Mapping[Pool, PoolEnds], media: MediaCounts) -> dict[str, int]:
    """Counts and bytes that only grow. Items that were pulled, and that were here when they were needed, are those of this epoch."""
    counters = {"pulls_failed": sum(end.pulls_failed for end in ends.values())}
    for pool, end in ends.items():
        counters[f"{pool}_bytes_offered"] = end.producer.stats.offered_bytes
        counters[f"{pool}_bytes_received"] = end.consumer.bytes_received
        counters[f"{pool}_pull_us"] = int(end.pull_seconds * 1e6)
        counters[f"{pool}_pull_exposed_us"] = int(end.exposed_seconds * 1e6)
    if Pool.MEDIA in ends:
        counters |= {"media_items_pulled": media.pulled, "media_items_found": media.found}
    return counters

"""Whether requests say the same of the same media item. Equal hashes mean equal embeddings: whoever counts otherwise was processed otherwise, and
the embeddings of one would be read as the other's."""

from __future__ import annotations

from collections.abc import Iterable

from triptych.runtime.core.media import MediaItem
from triptych.runtime.instance.media import MediaMemory


def disagreement(media: MediaMemory, items: Iterable[MediaItem]) -> str | None:
    """What `items` say otherwise than each other, tasks that are held or the store, if anything."""
    seen: dict[str, MediaItem] = {}
    for item in items:
        other = seen.setdefault(item.hash, item)
        if other is item:
            other = media.encoded_item(item.hash) or item
        if (other.tokens, other.patches) != (item.tokens, item.patches):
            return (
                f"media item {item.hash} has {item.tokens} tokens and {item.patches} patches here, and {other.tokens} and {other.patches} in "
                "another place: gateways that process media differently serve one cluster"
            )
        entry = media.store.entries.get(item.hash)
        if entry is not None and len(entry.pages) != media.store.pages_for(item.tokens):
            return f"media item {item.hash} has {item.tokens} tokens; {len(entry.pages)} pages hold its embeddings here"
    return None

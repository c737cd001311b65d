"""Rows of samples that decode one token each: most of what most plans have, so they are made by columns (columns.py).

An instance that decodes makes them for every sequence in every step (`tools/bench/host.py` measures what that takes).
"""

from __future__ import annotations

from collections.abc import Sequence

from triptych.runtime.instance.columns import DecodeRows
from triptych.runtime.instance.media import MediaMemory
from triptych.runtime.instance.plan import Attended
from triptych.runtime.instance.sequence import Sequence as TokenSequence
from triptych.runtime.instance.state import PlannedDecodes
from triptych.runtime.instance.tasks import Stream


def decode_rows(streams: Sequence[Stream], media: MediaMemory | None) -> DecodeRows:
    """One token of each stream: the last one known, or the one that its slot is drawing in the plan before. They have slots, and pages for it."""
    sequences = _sequences(streams)
    starts = [sequence.scheduled for sequence in sequences]
    return DecodeRows(
        [sequence.number for sequence in sequences],
        [
            () if stream.pending else (sequence.tokens[start],)
            for stream, sequence, start in zip(streams, sequences, starts, strict=True)
        ],
        starts,
        [start + stream.task.position_offset for stream, start in zip(streams, starts, strict=True)],
        [sequence.tables[0].view for sequence in sequences],
        [stream.slot for stream in streams if stream.slot is not None],
        [()] * len(streams) if media is None else [_attended(media, sequence) for sequence in sequences],
    )


def schedule(streams: Sequence[Stream]) -> PlannedDecodes:
    """What the results of these rows will mean. From now on the token is scheduled, and the draw behind it pending."""
    sequences = _sequences(streams)
    for stream, sequence in zip(streams, sequences, strict=True):
        stream.pending += 1
        sequence.scheduled += 1
    numbers = [sequence.number for sequence in sequences]
    return PlannedDecodes(numbers, list(streams), [stream.generation for stream in streams])


def _sequences(streams: Sequence[Stream]) -> list[TokenSequence]:
    return [stream.sequence for stream in streams if stream.sequence is not None]


def _attended(media: MediaMemory, sequence: TokenSequence) -> tuple[Attended, ...]:
    return media.attended(sequence) if sequence.media else ()

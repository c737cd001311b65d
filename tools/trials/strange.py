"""Strange input for a message type: noise, mutants of good messages, and messages that parse but say odd things.

Everything is drawn from one random generator, so a seed repeats a payload. `words` are values that mean something to the deployment (instance
names, epochs, the model), by field name: without them almost every message would end at the first look-up.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

Words = Mapping[str, Sequence[Any]]

F = FieldDescriptor
BITS = {
    F.TYPE_INT32: (32, True), F.TYPE_SINT32: (32, True), F.TYPE_SFIXED32: (32, True), F.TYPE_UINT32: (32, False), F.TYPE_FIXED32: (32, False),
    F.TYPE_INT64: (64, True), F.TYPE_SINT64: (64, True), F.TYPE_SFIXED64: (64, True), F.TYPE_UINT64: (64, False), F.TYPE_FIXED64: (64, False),
}  # fmt: skip
PYTHON = {F.TYPE_STRING: str, F.TYPE_BYTES: bytes, F.TYPE_BOOL: bool, F.TYPE_DOUBLE: float, F.TYPE_FLOAT: float}
FLOATS = (0.0, -0.0, 1.0, 0.5, -1.0, 1e-9, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan, 600.0)
TEXTS = ("", " ", "a", "\0", "\n", "../../etc/passwd", "{{ 7 * 7 }}", "{% for i in range(10**9) %}", "'; drop table x;--", "%s%n", "\u202e", "é" * 64, "🦀" * 9)  # fmt: skip
LENGTHS = (0, 1, 1, 2, 3, 8, 100)  # of repeated fields
DEPTH = 6


class Kind(StrEnum):
    """Where a payload comes from."""

    GOOD = "good"  # a sensible message, as it is
    STRANGE = "strange"  # every field drawn on its own
    MUTANT = "mutant"  # a good message with damaged bytes
    SPLICED = "spliced"  # two messages in one: the later value of a field, or of a oneof, wins
    NOISE = "noise"  # bytes
    HUGE = "huge"  # longer than a gateway accepts, or than any server


WEIGHTS = {Kind.GOOD: 3, Kind.STRANGE: 4, Kind.MUTANT: 6, Kind.SPLICED: 2, Kind.NOISE: 2, Kind.HUGE: 0.02}
# The scheduler and the workers take 64 MiB: one that they read, one that gRPC refuses by its length.
HUGE_BYTES = (20 * 10**6, 70 * 10**6)


class Source:
    """Draws payloads. `good` makes sensible messages of a type, or None where it knows none."""

    def __init__(self, rng: random.Random, words: Words, good: Callable[[Descriptor, random.Random], Message | None]):
        self._random = rng
        self._words = words
        self._good = good

    def payload(self, descriptor: Descriptor, kind: Kind | None = None) -> tuple[Kind, bytes]:
        """One payload for a method that takes `descriptor`, and what kind it is. `kind`: which, instead of any."""
        kind = kind or self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        match kind:
            case Kind.GOOD:
                return kind, self._sensible(descriptor)
            case Kind.STRANGE:
                return kind, self.message(descriptor).SerializeToString()
            case Kind.MUTANT:
                return kind, mutated(self._sensible(descriptor), self._random)
            case Kind.SPLICED:
                return kind, self._sensible(descriptor) + self.message(descriptor).SerializeToString()
            case Kind.NOISE:
                return kind, noise(self._random)
            case Kind.HUGE:
                return kind, self._sensible(descriptor) + b"\x00" * self._random.choice(HUGE_BYTES)

    def message(self, descriptor: Descriptor, depth: int = DEPTH) -> Message:
        """A message that parses, each field drawn on its own; of a oneof, whichever member is drawn last is set."""
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if depth and self._random.random() < 0.6:
                self._fill(message, field, depth - 1)
        return message

    def _sensible(self, descriptor: Descriptor) -> bytes:
        message = self._good(descriptor, self._random) or self.message(descriptor)
        return message.SerializeToString()

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            target = getattr(message, field.name)
            for _ in range(self._random.choice(LENGTHS)):
                if value.message_type is None:
                    target[self._scalar(key)] = self._scalar(value)
        elif field.is_repeated:
            count = self._random.choice(LENGTHS)
            values = (
                [self._scalar(field) for _ in range(count)]
                if entry is None
                else [self.message(entry, depth) for _ in range(min(count, 3))]
            )
            getattr(message, field.name).extend(values)
        elif entry is not None:
            getattr(message, field.name).CopyFrom(self.message(entry, depth))
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        known = [word for word in self._words.get(field.name, ()) if type(word) is PYTHON.get(field.type, int)]
        if known and self._random.random() < 0.7:
            return self._random.choice(known)
        if field.type in BITS:
            return self._whole(*BITS[field.type])
        match field.type:
            case F.TYPE_BOOL:
                return self._random.random() < 0.5
            case F.TYPE_ENUM:
                return self._whole(8, False)
            case F.TYPE_DOUBLE:
                return self._random.choice([*FLOATS, self._random.uniform(-10, 10)])
            case F.TYPE_FLOAT:
                return self._random.choice([x for x in FLOATS if not 1e38 < abs(x) < math.inf])
            case F.TYPE_BYTES:
                return noise(self._random)
        return self._text()

    def _whole(self, bits: int, signed: bool) -> int:
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return self._random.choice(
            [0, 1, 2, 7, low, high, high - 1, self._random.randint(0, 127), self._random.randint(low, high)]
        )

    def _text(self) -> str:
        if self._random.random() < 0.02:
            return "x" * self._random.choice([5_000, 200_000])
        return self._random.choice(TEXTS)


def noise(rng: random.Random) -> bytes:
    """Bytes without sense: random ones, one byte many times, groups nested deeper than a parser may follow, lengths that lie."""
    form = rng.random()
    if form < 0.1:
        return b"\x0b" * rng.randint(1, 5_000)
    if form < 0.2:
        return b"\x0a\xff\xff\xff\xff\x07" + rng.randbytes(rng.randint(0, 20))
    if form < 0.3:
        return rng.randbytes(1) * rng.randint(1, 300)
    return rng.randbytes(rng.choice([0, 1, 2, 5, 20, 300, 5_000]))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four damages."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(damaged))
        match rng.randrange(6):
            case 0 if damaged:
                damaged[at % len(damaged)] ^= 1 << rng.randrange(8)
            case 1 if damaged:
                damaged[at % len(damaged)] = rng.choice([0x00, 0x7F, 0x80, 0xFF])
            case 2:
                del damaged[at : at + rng.randint(1, 8)]
            case 3:
                damaged[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                damaged += damaged[at : at + 64]
            case 5:
                del damaged[at:]
    return bytes(damaged)

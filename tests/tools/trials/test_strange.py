"""Strange payloads: a seed repeats them, drawn messages parse, and every method that is served can be given some."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass

from triptych.proto.v1 import common_pb2
from triptych.tools.trials.calls import Method
from triptych.tools.trials.corpus import Conversation, Facts
from triptych.tools.trials.fuzz import EVERYTHING
from triptych.tools.trials.strange import Kind, Source, mutated

REF = common_pb2.InstanceRef(id="decode-0", epoch=77)
FACTS = Facts("toy", 256, (common_pb2.InstanceInfo(ref=REF, worker="w", address="127.0.0.1:1"),))


def source(seed: int) -> Source:
    rng = random.Random(seed)
    return Source(rng, FACTS.words, Conversation(FACTS, rng))


@pytest.mark.parametrize("method", EVERYTHING, ids=lambda method: method.shown)
def test_every_method_gets_payloads_that_its_seed_repeats(method: Method) -> None:
    takes = method.descriptor.input_type
    drawn = [source(seed).payload(takes) for seed in range(60)]
    assert drawn == [source(seed).payload(takes) for seed in range(60)]
    message = GetMessageClass(takes)
    for kind, data in drawn:
        if kind in (Kind.GOOD, Kind.STRANGE, Kind.SPLICED):
            message.FromString(data)


def test_strange_messages_name_what_lives_here() -> None:
    descriptor: Any = common_pb2.InstanceRef.DESCRIPTOR
    drawn = [source(seed).message(descriptor) for seed in range(100)]
    assert any(message == REF for message in drawn)


def test_streams_begin_with_their_greeting() -> None:
    rng = random.Random(1)
    talk = Conversation(FACTS, rng)
    method = next(method for method in EVERYTHING if method.shown == "Control.Gateway")
    said = [talk(method.descriptor.input_type, rng) for _ in range(30)]
    kinds = [message.WhichOneof("kind") for message in said if message is not None]
    assert kinds[0] == "hello" and "hello" not in kinds[1:] and {"submit", "declare", "resume", "cancel"} <= set(kinds)


def test_a_mutant_differs_and_the_original_stays() -> None:
    data = bytes(range(50))
    mutants = {mutated(data, random.Random(seed)) for seed in range(50)}
    assert len(mutants) > 40 and data == bytes(range(50))
    assert all(isinstance(mutated(b"", random.Random(seed)), bytes) for seed in range(50))

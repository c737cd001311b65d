"""Sensible messages to start from: what real peers say, with the names of the deployment under trial.

A `Conversation` is one peer's side of one call: its own names, and on a stream the greeting first. It never takes the name of a living gateway or
worker: on the inside of a deployment peers are trusted to say who they are, and one that lies ends the other's stream by design.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from triptych.proto.v1 import common_pb2 as common
from triptych.proto.v1 import control_pb2 as control
from triptych.proto.v1 import inference_pb2 as inference
from triptych.proto.v1 import transfer_pb2 as transfer
from triptych.proto.v1 import worker_pb2 as worker
from triptych.runtime.core.errors import Status
from triptych.tools.trials import media_corpus
from triptych.tools.trials.strange import Words

NOWHERE = "127.0.0.1:9"  # nothing listens on the discard port
MEDIA_SHARE = 0.5  # of the requests to a model that sees
SAYINGS = ("hello", "The capital of France is", "a", " " * 30, "1 2 3 4 5 6 7 8 9")


@dataclass(frozen=True)
class Facts:
    """What a peer of the deployment knows: the model, its instances, and what stands for a picture in a prompt (nothing, if it sees none)."""

    model: str
    vocab_size: int
    instances: tuple[common.InstanceInfo, ...]
    placeholder: str = ""

    @property
    def words(self) -> Words:
        """Values by field name for messages that are drawn field by field."""
        refs = [info.ref for info in self.instances]
        return {
            "model": [self.model, ""],
            "id": [ref.id for ref in refs],
            "epoch": [ref.epoch for ref in refs],
            "owner": [],
            "roles": ["prefill", "decode", "encode", "nobody"],
            "role": ["prefill", "decode"],
            "transport": ["grpc", "local", "device", "pigeon"],
            "transports": ["grpc", "local", "device", "pigeon"],
            "dtype": ["float32", "bfloat16", "float33"],
            "reason": ["stop", "length", "because"],
            "max_tokens": [1, 2, 16],
            "n": [1, 2],
            "prompt": [1, 2, 3] * 4,
            "token": [0, 1, self.vocab_size - 1, self.vocab_size],
            "attempt": [0, 1, 2],
            "gateway": ["fuzz-gateway"],
            "worker": ["fuzz-worker"],
            "timeout": [0.0, 0.05, 5.0],
            "address": [NOWHERE, "", "nonsense"],
            "handle": [*media_corpus.HANDLES],
            "type": [*media_corpus.TYPES],
            "hash": ["unasked"],
            "kind": ["image", "audio"],
            "grid": [1, 4],
            "shape": [16, 48],
        }


class Conversation:
    """Good messages of one peer. Call it with a message type; None where it has nothing sensible to say."""

    def __init__(self, facts: Facts, rng: random.Random):
        self._facts = facts
        self._name = f"fuzz-{rng.getrandbits(32):08x}"
        self._request = f"{self._name}-{rng.randrange(3)}"
        self._greeted = False
        self._upload, self._pixels = media_corpus.Upload(rng), media_corpus.Pixels(facts.instances, rng)
        self._makers: Mapping[str, Callable[[random.Random], Any]] = {
            "GenerateRequest": self._generate,
            "TokenizeRequest": lambda r: inference.TokenizeRequest(text=r.choice(SAYINGS)),
            "DetokenizeRequest": lambda r: inference.DetokenizeRequest(ids=self._tokens(r)),
            "AbortRequest": lambda r: inference.AbortRequest(request_id=self._request),
            "GatewayMessage": self._gateway,
            "WorkerMessage": self._worker,
            "SubscribeRequest": lambda r: worker.SubscribeRequest(gateway=self._name),
            "OpenRequest": self._open,
            "FetchRequest": self._fetch,
            "ReleaseRequest": self._release,
            "UploadMediaRequest": self._upload,
            "PutMediaRequest": self._pixels,
            "DeleteMediaRequest": lambda r: inference.DeleteMediaRequest(handle=r.choice(media_corpus.HANDLES)),
        }

    def __call__(self, descriptor: Descriptor, rng: random.Random) -> Message | None:
        make = self._makers.get(descriptor.name)
        return None if make is None else make(rng)

    # ---- clients --------------------------------------------------------------------------------------------------------------------

    def _generate(self, rng: random.Random) -> inference.GenerateRequest:
        request = inference.GenerateRequest(timeout=rng.choice([0.2, 5.0]), request_id=rng.choice(["", self._request]))
        match rng.randrange(3):
            case 0:
                request.prompt = rng.choice(SAYINGS)
            case 1:
                request.chat.messages.add(role="user", content=rng.choice(SAYINGS))
            case _:
                request.token_ids.ids.extend(self._tokens(rng))
        options = request.sampling
        options.max_tokens, options.seed, options.n = (
            rng.randint(1, 8),
            rng.getrandbits(64),
            rng.choice([1, 1, 1, 2, 3]),
        )
        if rng.random() < 0.3:
            options.stop.append(rng.choice(["a", "the", "\n"]))
            options.logprobs = rng.randint(0, 3)
            options.prompt_logprobs = rng.randint(0, 3)
            options.presence_penalty = rng.uniform(-2, 2)
        if rng.random() < (MEDIA_SHARE if self._facts.placeholder else 0.02):
            media_corpus.add_media(request, self._facts.placeholder, rng)
        return request

    def _tokens(self, rng: random.Random) -> list[int]:
        return [rng.randrange(self._facts.vocab_size) for _ in range(rng.choice([1, 2, 5, 40]))]

    # ---- the control plane ----------------------------------------------------------------------------------------------------------

    def _gateway(self, rng: random.Random) -> control.GatewayMessage:
        if not self._greeted:
            self._greeted = True
            return control.GatewayMessage(hello=control.Hello(gateway=self._name))
        match rng.randrange(6):
            case 0 | 1:
                return control.GatewayMessage(submit=control.Submit(request=self._inside(rng)))
            case 2:
                return control.GatewayMessage(cancel=control.Cancel(request=self._request, reason="because"))
            case 3:
                return control.GatewayMessage(declare=control.Declare(request=self._inside(rng)))
            case 4:
                samples = [common.SampleState(sample=0, outputs=self._tokens(rng))]
                return control.GatewayMessage(resume=control.Resume(request=self._inside(rng), samples=samples))
            case _:
                return control.GatewayMessage(leave=control.Leave(reason="done"))

    def _inside(self, rng: random.Random) -> common.Request:
        sampling = common.SamplingParams(
            max_tokens=rng.randint(1, 8),
            temperature=1.0,
            top_p=1.0,
            repetition_penalty=1.0,
            n=1,
            seed=rng.getrandbits(64),
        )
        prompt = self._tokens(rng)
        return common.Request(
            id=self._request,
            gateway=self._name,
            model=self._facts.model,
            prompt=prompt,
            sampling=sampling,
            deadline=rng.uniform(0.1, 3.0),
            attempt=rng.choice([1, 1, 1, 2]),
            media=media_corpus.items(len(prompt), rng) if rng.random() < 0.3 else (),
        )

    def _worker(self, rng: random.Random) -> control.WorkerMessage:
        mine = self._instance(rng)
        if not self._greeted:
            self._greeted = True
            return control.WorkerMessage(worker_joined=control.WorkerJoined(worker=self._name, instances=[mine]))
        if rng.random() < 0.3:
            load = control.InstanceLoad(ref=mine.ref, load=common.Load(free_pages=5, free_slots=2))
            return control.WorkerMessage(heartbeat=control.Heartbeat(worker=self._name, loads=[load]))
        if rng.random() < 0.1:
            return control.WorkerMessage(leave=control.Leave(reason="done"))
        return control.WorkerMessage(reported=control.Reported(ref=mine.ref, report=self._report(rng)))

    def _report(self, rng: random.Random) -> control.TaskReport:
        attempt, report, request = rng.choice([1, 2]), control.TaskReport(), self._request
        if rng.random() < 0.3:
            return media_corpus.media_report(request, self._someone(rng), NOWHERE, rng)
        match rng.randrange(6):
            case 0:
                report.granted.CopyFrom(control.Granted(request=request, attempt=attempt))
            case 1:
                report.refused.CopyFrom(control.Refused(request=request, role="prefill", reason="no", attempt=attempt))
            case 2:
                handle = common.Handle(owner=self._someone(rng), address=NOWHERE, key=rng.getrandbits(64), digest="d")
                report.staged.CopyFrom(control.Staged(request=request, handle=handle, attempt=attempt))
            case 3:
                report.accepted.CopyFrom(control.Accepted(request=request, attempt=attempt))
            case 4:
                done = control.PrefillDone(
                    request=request, report=common.PromptReport(prompt_tokens=3), attempt=attempt
                )
                report.prefill_done.CopyFrom(done)
            case _:
                status = rng.choice(list(Status))
                ended = control.TaskEnded(request=request, role="decode", status=status, reason="x", attempt=attempt)
                report.task_ended.CopyFrom(ended)
        return report

    def _instance(self, rng: random.Random) -> common.InstanceInfo:
        """An instance of this peer that nothing listens for; it has a real one's shape, so the scheduler believes in it."""
        info = common.InstanceInfo()
        if self._facts.instances:
            info.CopyFrom(rng.choice(self._facts.instances))
        info.ref.id, info.ref.epoch = f"{self._name}-instance", 7
        info.worker, info.address, info.domain = self._name, NOWHERE, self._name
        return info

    def _someone(self, rng: random.Random) -> common.InstanceRef:
        return rng.choice(self._facts.instances).ref if self._facts.instances else common.InstanceRef(id="a", epoch=1)

    # ---- transfers ------------------------------------------------------------------------------------------------------------------

    def _open(self, rng: random.Random) -> transfer.OpenRequest:
        header = transfer.KvHeader(model=self._facts.model, dtype="float32", page_size=16, granule=16, protocol=1)
        return transfer.OpenRequest(
            owner=self._someone(rng), key=rng.getrandbits(64), header=header, digest="d", head_unit=1, transport="grpc"
        )

    def _fetch(self, rng: random.Random) -> transfer.FetchRequest:
        return transfer.FetchRequest(owner=self._someone(rng), key=rng.getrandbits(64), offer=1, chunks=range(3))

    def _release(self, rng: random.Random) -> transfer.ReleaseRequest:
        outcome = transfer.Outcome(status=rng.choice([0, 14, 99]))
        return transfer.ReleaseRequest(owner=self._someone(rng), key=rng.getrandbits(64), offers=[1], outcome=outcome)

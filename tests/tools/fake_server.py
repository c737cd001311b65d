"""A real gRPC server behind the client commands, with an honest toy model: token i of the answer is (prompt's last token + 1 + i)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from triptych.proto.v1 import inference_pb2 as pb
from triptych.proto.v1 import inference_pb2_grpc

VOCAB = 100


class ToyInference(inference_pb2_grpc.InferenceServicer):
    """Remembers what it was asked; a prompt of "overload" is refused."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.metadata: list[dict[str, str]] = []

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append({k: str(v) for k, v in context.invocation_metadata()})
        if request.prompt == "overload":
            context.set_trailing_metadata((("retry-after", "2"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        prompt = prompt_ids(request)
        yield pb.GenerateResponse(prompt=pb.PromptInfo(request_id="r-1", prompt_tokens=len(prompt)))
        count = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else 3
        for index in range(count):
            token = (prompt[-1] + 1 + index) % VOCAB
            detail = pb.TokenDetail(token=token, position=len(prompt) + index)
            yield pb.GenerateResponse(delta=pb.Delta(sample=0, text=f"{token} ", tokens=[detail]))
        yield pb.GenerateResponse(completion=pb.Completion(sample=0, finish_reason="length"))
        usage = pb.Usage(prompt_tokens=len(prompt), completion_tokens=count)
        timings = pb.Timings(
            first_token=0.01,
            total=0.02,
            prefill_instance="prefill-0",
            decode_instance="decode-0",
            pages_pulled=2,
            kv_bytes=4096,
        )
        yield pb.GenerateResponse(summary=pb.Summary(usage=usage, timings=timings))

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.ModelInfo:
        return pb.ModelInfo(
            model="toy",
            architecture="Toy",
            revision="abc",
            vocab_size=VOCAB,
            max_model_len=256,
            eos_token_ids=[2],
            parameters=1_000_000,
        )

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext) -> pb.ServerInfo:
        return pb.ServerInfo(version="0", topology="1P1D", uptime=5.0, config_json='{"topology": "1P1D"}')

    def GetLoads(self, request: pb.GetLoadsRequest, context: grpc.ServicerContext) -> pb.Loads:
        one = pb.InstanceOccupancy(
            id="decode-0", roles=["decode"], tp=1, running=1, free_pages=3, num_pages=4, free_slots=7
        )
        return pb.Loads(instances=[one], active=1)


def prompt_ids(request: pb.GenerateRequest) -> list[int]:
    """Token ids of the prompt; one per character of a text or of the last message."""
    if request.WhichOneof("input") == "token_ids":
        return list(request.token_ids.ids)
    if request.WhichOneof("input") == "prompt":
        text = request.prompt
    else:
        last = request.chat.messages[-1]
        text = last.content + "".join(part.text for part in last.parts)
    return [ord(c) % VOCAB for c in text]


def start() -> tuple[grpc.Server, ToyInference, str]:
    """Start on a free port; stop the server when done."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    toy, checks = ToyInference(), health.HealthServicer()
    checks.set("triptych.v1.Inference", health_pb2.HealthCheckResponse.SERVING)
    inference_pb2_grpc.add_InferenceServicer_to_server(toy, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, toy, f"127.0.0.1:{port}"

"""ServeConfig: everything a server can be told, in one frozen value.

A process resolves it once at start (settings.py: flag, then TRIPTYCH_<FIELD>, then --config file, then default), which validates it; from
then on it is passed as an argument. Where vLLM or SGLang have a name for a setting, it is accepted too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triptych.models.kernels.names import AUTO_KERNEL, CHOICES
from triptych.models.kv import KV_CODES
from triptych.models.weight_formats import AUTO, WEIGHT_FORMATS
from triptych.runtime.core import topology as topologies
from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.instance import Role
from triptych.runtime.instance.composer import COMPOSERS, DEFAULT_COMPOSER
from triptych.runtime.wire.logs import FORMATS as LOG_FORMATS
from triptych.tools.config_checks import contradictions, out_of_range
from triptych.tools.settings import describe, parse_bytes, setting

DEFAULT_PORT = 8431
_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of one deployment: a scheduler, a gateway and the instances of a topology. Raises ConfigError listing all that is wrong."""

    model: str = setting(
        "smollm2",
        "what to serve: smollm2, a folder in Hugging Face or Orbax layout, a .gguf file, dummy:<preset>, or a hub id org/name",
        flags=("--model-path",),
        group="model",
    )
    served_model_name: str | None = setting(None, "name that clients use (auto: the model's own)", group="model")
    tokenizer: str | None = setting(
        None, "folder or file of another tokenizer (auto: the model's)", flags=("--tokenizer-path",), group="model"
    )
    chat_template: str | None = setting(None, "file with a Jinja chat template (auto: the model's)", group="model")
    load_format: str = setting(
        "auto",
        "auto reads the weights; dummy makes random ones of the same shape",
        choices=("auto", "dummy"),
        group="model",
    )
    dtype: str = setting(
        "auto",
        "weights and activations; auto is float32 on CPU, bfloat16 elsewhere",
        choices=("auto", "float32", "bfloat16"),
        group="model",
    )
    weights: str = setting(
        AUTO, "how matrices are stored; auto: in dtype", choices=(AUTO, *WEIGHT_FORMATS), group="model"
    )
    max_model_len: int | None = setting(
        None, "longest prompt + output, in tokens (auto: the model's)", flags=("--context-length",), group="model"
    )
    seed: int = setting(0, "seed of dummy weights and of draws whose request names none", group="model")

    topology: str = setting("1P1D", "instances: xPyD, nPD or n(P-D)", group="placement")
    processes: str = setting(
        "per-instance",
        "one process per instance, or one for all (KV then moves inside the process)",
        choices=("per-instance", "one"),
        group="placement",
    )
    tensor_parallel_size: int = setting(
        1, "devices per instance", flags=("--tp", "--tp-size", "-tp"), group="placement"
    )
    prefill_tp: int | None = setting(
        None,
        "devices per prefill instance (auto: --tensor-parallel-size)",
        flags=("--prefill-tensor-parallel-size",),
        group="placement",
    )
    decode_tp: int | None = setting(
        None,
        "devices per decode instance (auto: --tensor-parallel-size)",
        flags=("--decode-tensor-parallel-size",),
        group="placement",
    )
    encode_tp: int | None = setting(
        None, "devices per instance that only encodes (auto: --tensor-parallel-size)", group="placement"
    )
    switchable: bool = setting(
        False,
        "prepare every instance for both stages, so that `triptych switch-role` compiles nothing (longer start, more programs)",
        group="placement",
    )
    transport: str = setting(
        "auto",
        "how KV moves; auto is local inside a process and the best that both sides have between processes",
        choices=("auto", "local", "device", "grpc"),
        flags=("--disaggregation-transfer-backend",),
        group="placement",
    )
    device: str = setting("auto", "kind of device", choices=("auto", "cpu", "cuda", "tpu"), group="placement")
    emulate_devices: int | None = setting(
        None, "CPU devices to emulate in each process (auto: as many as its instances need)", group="placement"
    )

    max_num_seqs: int = setting(
        8, "sequences that an instance decodes at once", flags=("--max-running-requests",), group="engine"
    )
    max_num_batched_tokens: int = setting(
        256,
        "prompt tokens in one step: the prefill chunk",
        flags=("--chunked-prefill-size", "--chunk-tokens"),
        group="engine",
    )
    page_size: int = setting(16, "tokens in a KV page", flags=("--block-size",), group="engine")
    num_pages: int | None = setting(
        None, "KV pages of an instance (auto: by memory)", flags=("--num-gpu-blocks-override",), group="engine"
    )
    kv_cache_memory: int | None = setting(
        None,
        "memory for the KV pages of an instance on each device, such as 2GiB (auto: by --gpu-memory-utilization)",
        flags=("--kv-cache-memory-bytes",),
        parse=parse_bytes,
        group="engine",
    )
    gpu_memory_utilization: float = setting(
        0.9,
        "share of an accelerator's memory that weights, programs and pages may take",
        flags=("--mem-fraction-static",),
        group="engine",
    )
    media_pages: int | None = setting(
        None, "pages of embeddings of an instance; 0: no media (auto: a few prompts of full length)", group="engine"
    )
    encode_patches: int | None = setting(
        None, "most patches of one encode step, and of one item (auto: the largest image)", group="engine"
    )
    media_memory: int = setting(
        1 << 30, "memory for pixels that wait to be encoded, on each instance", parse=parse_bytes, group="engine"
    )
    step_times: str | None = setting(
        None,
        "table of `triptych calibrate`: steps wait until they have taken as long as it says, to stand in for another device",
        group="engine",
    )
    kv_layer_groups: str = setting(
        "all", "layers whose KV leaves together while later ones compute: a number, all or auto", group="engine"
    )
    kv_times: str | None = setting(
        None, "report of `triptych bench-overlap --json` that --kv-layer-groups auto takes", group="engine"
    )
    attention: str = setting(
        AUTO_KERNEL,
        "kernel of text decoders; auto is gpu on Hopper GPUs, else reference, which runs anywhere; tpu; gpu takes gpu-triton for decoding and gpu-mosaic (Hopper, 16 bits) for prompts where it can",
        choices=CHOICES,
        flags=("--attention-backend",),
        group="engine",
    )
    kv_cache_dtype: str = setting(
        "auto",
        "dtype of KV pages; auto is that of the model, int8 and fp8 are codes with a scale for each token and head",
        choices=("auto", "float32", "bfloat16", *KV_CODES),
        group="engine",
    )
    speculative: str = setting(
        "off",
        "guess tokens, verify several a step: ngram looks them up in the text so far, draft asks a small model",
        choices=("off", "ngram", "draft"),
        group="engine",
    )
    speculative_model: str | None = setting(
        None, "that model, named as --model is; its vocabulary is the model's", group="engine"
    )
    speculative_tokens: int = setting(
        4, "most tokens of a sequence guessed in one step", flags=("--num-speculative-tokens",), group="engine"
    )
    enable_prefix_caching: bool = setting(True, "reuse the KV of prompts that begin alike", group="engine")
    compile_threads: int | None = setting(
        None, "programs compiled at once (default: 2 on CPU, most of the cores beside an accelerator)", group="engine"
    )
    composer: str = setting(
        DEFAULT_COMPOSER,
        "what enters a step (not where stages take turns): prompts-first decodes only in steps that prompts do not fill, for more tokens a second, each later; shortest-first has half of its prompt tokens for the shortest prompts",
        choices=tuple(COMPOSERS),
        group="engine",
    )

    host: str = setting("127.0.0.1", "address to listen on", group="network")
    port: int = setting(DEFAULT_PORT, "gRPC port; 0 takes a free one and prints it", group="network")
    scheduler_port: int = setting(
        0,
        "port of the scheduler that serve starts, for workers elsewhere; 0 takes a free one and prints it",
        group="network",
    )
    http_port: int | None = setting(
        None,
        "port of OpenAI's HTTP API before the gateway; 0 takes a free one and prints it (auto: none)",
        group="network",
    )
    max_message_mb: int = setting(32, "largest gRPC message, in MB (larger media are uploaded)", group="network")

    api_key: str | None = setting(
        None,
        "bearer tokens of clients, separated by commas; a call must carry one (better in the environment or a file)",
        flags=("--token",),
        secret=True,
        group="security",
    )
    api_key_file: str | None = setting(
        None, "file with bearer tokens of clients, one a line", flags=("--token-file",), group="security"
    )
    cluster_token: str | None = setting(
        None,
        "bearer token between the processes of the deployment (auto: the clients' first)",
        secret=True,
        group="security",
    )
    cluster_token_file: str | None = setting(None, "file with that token", group="security")
    ssl_certfile: str | None = setting(None, "certificate of this server, PEM: TLS on every leg", group="security")
    ssl_keyfile: str | None = setting(None, "its key, PEM", group="security")
    ssl_ca_certs: str | None = setting(None, "authorities whose certificates are believed, PEM", group="security")
    ssl_cert_reqs: str = setting(
        "required",
        "whether clients of the gateway must show a certificate; the processes of the deployment always must",
        choices=("required", "none", "2", "0"),
        group="security",
    )
    cluster_ssl_certfile: str | None = setting(
        None, "certificate that processes of the deployment show each other (auto: --ssl-certfile)", group="security"
    )
    cluster_ssl_keyfile: str | None = setting(None, "its key, PEM (auto: --ssl-keyfile)", group="security")
    cluster_ssl_ca_certs: str | None = setting(
        None, "authorities that they believe, PEM (auto: --ssl-ca-certs)", group="security"
    )
    cluster_ssl_server_name: str | None = setting(
        None, "name that their certificates carry (auto: the address that is called)", group="security"
    )
    allow_insecure_device_transport: bool = setting(
        False,
        "let KV move by transport device although TLS is on: it can be neither encrypted nor authenticated",
        group="security",
    )

    max_media_mb: int = setting(
        1024, "media that all open requests of the gateway hold, in MB, processed; and as they came", group="limits"
    )
    spare_media_mb: int = setting(128, "processed media that is kept for later requests, in MB", group="limits")
    max_media_item_mb: int = setting(32, "largest image, sound or video, in MB as the client sends it", group="limits")
    max_image_pixels: int = setting(50_000_000, "largest image, in pixels", group="limits")
    max_video_frames: int = setting(768, "most frames that are taken from one video", group="limits")
    media_processes: int = setting(2, "processes of the gateway that decode and process media", group="limits")

    max_waiting: int = setting(
        256,
        "requests that may wait for an instance; more are refused at once",
        flags=("--max-queued-requests",),
        group="limits",
    )
    max_in_flight: int = setting(1024, "requests that the gateway has open at once; more are refused", group="limits")
    rate_limit: float | None = setting(
        None,
        "requests per second of one gRPC client, by token or address; an HTTP server before the gateway is one client (auto: no limit)",
        group="limits",
    )
    rate_burst: int = setting(20, "requests that a client may send at once before the rate holds", group="limits")
    max_prompt_tokens: int | None = setting(None, "longest prompt (auto: what --max-model-len leaves)", group="limits")
    request_timeout: float = setting(600.0, "seconds that a request may take when it names no deadline", group="limits")
    role_controller: str = setting(
        "none",
        "who moves the compute share of instances that hold both stages while they run",
        choices=("none", "share-by-backlog"),
        group="placement",
    )
    max_attempts: int = setting(
        5, "times that a request is begun, when what runs it is lost, before it fails", group="limits"
    )
    patience: float = setting(30.0, "seconds that a request waits for a missing stage or scheduler", group="limits")
    heartbeat_interval: float = setting(1.0, "seconds between heartbeats of a worker", group="limits")
    heartbeat_timeout: float = setting(5.0, "seconds of silence after which a worker counts as dead", group="limits")
    lease_seconds: float = setting(
        30.0, "seconds that staged KV outlives its puller's last sign of life", group="limits"
    )
    startup_timeout: float = setting(
        900.0, "seconds until all processes must be ready (loading and compiling)", group="limits"
    )
    shutdown_timeout: float = setting(10.0, "seconds that running requests get at shutdown", group="limits")

    cache_dir: str = setting("~/.cache/triptych", "fetched models", flags=("--download-dir",), group="files and logs")
    compile_cache_dir: str | None = setting(
        None, "compiled programs (auto: <cache-dir>/compiled)", group="files and logs"
    )
    log_level: str = setting("info", "what to log", choices=_LOG_LEVELS, group="files and logs")
    log_format: str = setting("text", "how to log", choices=LOG_FORMATS, group="files and logs")
    metrics_host: str = setting("127.0.0.1", "address of the metrics ports", group="files and logs")
    metrics_port: int = setting(
        0,
        "port of /metrics, /live and /ready; serve gives the scheduler this one, the gateway the next, then the workers (0: none)",
        group="files and logs",
    )
    otlp_traces_endpoint: str | None = setting(
        None, "send a span for each request there, such as http://localhost:4318/v1/traces", group="files and logs"
    )

    def __post_init__(self) -> None:
        problems = [*out_of_range(self), *contradictions(self)]
        if problems:
            raise ConfigError(describe(problems))

    @property
    def plan(self) -> topologies.Topology:
        return topologies.parse(self.topology)

    @property
    def served_name(self) -> str:
        """What clients call the model: the name given, or that of the folder, file or repository."""
        return self.served_model_name or Path(self.model).name.removesuffix(".gguf")

    @property
    def cache_path(self) -> Path:
        return Path(self.cache_dir).expanduser()

    @property
    def compile_cache_path(self) -> Path:
        return Path(self.compile_cache_dir).expanduser() if self.compile_cache_dir else self.cache_path / "compiled"

    def tp_of(self, roles: frozenset[Role]) -> int:
        """Devices of an instance with these roles."""
        if roles == {Role.PREFILL} and self.prefill_tp is not None:
            return self.prefill_tp
        if roles == {Role.DECODE} and self.decode_tp is not None:
            return self.decode_tp
        if roles == {Role.ENCODE} and self.encode_tp is not None:
            return self.encode_tp
        return self.tensor_parallel_size

    def devices_of(self, *instances: topologies.InstanceSpec) -> int:
        """Devices that a process with these instances needs."""
        return sum(self.tp_of(spec.roles) for spec in instances)

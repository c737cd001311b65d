"""The gateway's limits, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field

from triptych.runtime.core.errors import ConfigError
from triptych.runtime.core.generation import Patience
from triptych.runtime.media.limits import MediaLimits
from triptych.runtime.media.pool import PoolConfig
from triptych.runtime.media.store import StoreConfig
from triptych.runtime.wire.rate import Rate


@dataclass(frozen=True)
class GatewayConfig:
    """Every bound that keeps a gateway's memory and waiting times finite.

    Attributes:
        scheduler: address of the Control service, host:port.
        max_in_flight: requests from arrival to end; more are refused with RESOURCE_EXHAUSTED.
        rate: how often one client (its token, or its address) may generate and tokenise; None: as often as it likes.
        retry_after: seconds of the retry hint in that refusal.
        max_receive_bytes: largest message a client may send (gRPC refuses larger ones with RESOURCE_EXHAUSTED).
        max_prompt_chars: longest text that is tokenised at all; tokenising costs time before the length in tokens is known.
        max_prompt_tokens: longest prompt; None: what the model's context allows.
        max_buffered_tokens: tokens held for a client that reads too slowly, before its request is ended.
        default_timeout: seconds a request may take that names neither a timeout nor a deadline: none is without an end.
        text_threads: threads that tokenise and render chat templates.
        final_token_grace: seconds to wait for the last tokens after the scheduler said that the request is complete.
        gap_timeout: seconds to wait for a missing position while later ones are here (its worker's stream broke). After either of these two
            waits the request goes on under a new attempt.
        max_attempts: attempts after which such a request fails instead.
        scheduler_patience: seconds without a scheduler and without a new token after which a request fails. Restarting a scheduler takes a
            few; a request whose tokens keep coming needs none.
        link_linger: seconds that the subscription to a worker outlives its place in the directory: news of a departure may overtake
            the last tokens, and a scheduler that has just started does not know its workers yet.
        report_grace: seconds to wait, after the last token, for prefill's report on the prompt (usage needs it).
        drain_grace: seconds to send what is left to the client before a failed request's status.
        media: how much media a request may bring, and how long decoding may take.
        media_pool: the processes that decode and process.
        max_media_bytes: processed media that all open requests hold together, and likewise the files that they brought; what is beyond either is
            refused with RESOURCE_EXHAUSTED.
        spare_media_bytes: processed media kept after their requests, so that the same picture is not processed again.
        uploads: how much of what clients upload is kept, and for how long.
        media_pushes: pieces brought to one worker at the same time.
        media_push_timeout: seconds that bringing one piece may take, before it is tried again.
        backoff_initial, backoff_max: seconds between attempts to reach the scheduler or a worker again.
    """

    scheduler: str
    max_in_flight: int = 1024
    rate: Rate | None = None
    retry_after: float = 1.0
    max_receive_bytes: int = 32 * 2**20
    max_prompt_chars: int = 4_000_000
    max_prompt_tokens: int | None = None
    max_buffered_tokens: int = 4096
    default_timeout: float = 600.0
    text_threads: int = 2
    final_token_grace: float = 5.0
    gap_timeout: float = 10.0
    max_attempts: int = 5
    scheduler_patience: float = 30.0
    link_linger: float = 30.0
    report_grace: float = 2.0
    drain_grace: float = 1.0
    media: MediaLimits = field(default_factory=MediaLimits)
    media_pool: PoolConfig = field(default_factory=PoolConfig)
    max_media_bytes: int = 2**30
    spare_media_bytes: int = 2**27
    uploads: StoreConfig = field(default_factory=StoreConfig)
    media_pushes: int = 4
    media_push_timeout: float = 30.0
    backoff_initial: float = 0.05
    backoff_max: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (
                name not in ("scheduler", "max_prompt_tokens", "rate", "media", "media_pool", "uploads")
                and not value > 0
            ):
                raise ConfigError(f"gateway.{name} is {value!r}; expected a positive number")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ConfigError(f"gateway.max_prompt_tokens is {self.max_prompt_tokens}; expected at least 1, or unset")

    @property
    def patience(self) -> Patience:
        """What a generation needs to know of these."""
        return Patience(
            gap=self.gap_timeout,
            last_tokens=self.final_token_grace,
            scheduler=self.scheduler_patience,
            attempts=self.max_attempts,
            retry_after=self.retry_after,
        )


@dataclass(frozen=True)
class ServerFacts:
    """What GetServerInfo tells: set by whoever starts the process. `config_json` must hold no secrets."""

    version: str
    topology: str = ""
    config_json: str = "{}"

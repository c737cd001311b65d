"""Failures as HTTP answers in OpenAI's form: {"error": {"message", "type", "param", "code"}}, with the status that clients act on.

The typed errors of the runtime arrive from the gateway by gRPC; this is the one place that knows their HTTP statuses. What the gateway says of
*this server's* credentials is a fault of the deployment, hence 502 and not 401.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from triptych.runtime.core.errors import Status, TriptychError

CLIENT_CLOSED_REQUEST = 499  # nginx's number: the client went away, or the request was aborted on its behalf
DEFAULT_RETRY = 1.0  # seconds, for refusals that name no time


@dataclass(frozen=True)
class Kind:
    """What every error of one HTTP status has in common."""

    type: str
    code: str | None = None


KINDS: dict[int, Kind] = {
    400: Kind("invalid_request_error"),
    401: Kind("invalid_request_error", "invalid_api_key"),
    404: Kind("invalid_request_error", "not_found"),
    405: Kind("invalid_request_error", "method_not_allowed"),
    408: Kind("timeout_error", "request_timeout"),
    413: Kind("invalid_request_error", "request_too_large"),
    415: Kind("invalid_request_error", "unsupported_media_type"),
    429: Kind("rate_limit_error", "rate_limit_exceeded"),
    CLIENT_CLOSED_REQUEST: Kind("cancelled_error", "request_cancelled"),
    500: Kind("server_error", "internal_error"),
    501: Kind("server_error", "not_implemented"),
    502: Kind("server_error", "upstream_refused"),
    503: Kind("server_error", "service_unavailable"),
    504: Kind("timeout_error", "deadline_exceeded"),
}

STATUSES: dict[Status, int] = {
    Status.CANCELLED: CLIENT_CLOSED_REQUEST,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.PERMISSION_DENIED: 502,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.FAILED_PRECONDITION: 500,
    Status.UNIMPLEMENTED: 501,
    Status.INTERNAL: 500,
    Status.UNAVAILABLE: 503,
    Status.DATA_LOSS: 500,
    Status.UNAUTHENTICATED: 502,
}


class HttpError(Exception):
    """An answer other than the one that was asked for.

    Args:
        param: the field to blame.
        code: instead of the code that all errors of this status have.
        retry_after: seconds.
        close: whether the connection cannot be used again, because the request was not read to its end.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        close: bool = False,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.close = close

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status) or KINDS[400 if self.status < 500 else 500]
        return {
            "error": {
                "message": self.message,
                "type": kind.type,
                "param": self.param,
                "code": self.code or kind.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, as HTTP has it, and in milliseconds, as OpenAI's clients read it first."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
            headers["retry-after-ms"] = str(max(1, math.ceil(self.retry_after * 1e3)))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if self.close:
            headers["connection"] = "close"
        return headers


def bad_field(param: str, message: str) -> HttpError:
    """400 for one field of the body."""
    return HttpError(400, message, param=param)


def from_runtime(error: TriptychError, fields: frozenset[str] = frozenset()) -> HttpError:
    """What a failure of the gateway is to an HTTP client. `fields`: names that a message may begin with, to tell which one is meant."""
    status, retry = STATUSES[error.status], error.retry_after
    message = _PART.sub(r"messages[\1].content[\2]", error.message)
    match status:
        case 400 if message.startswith("the prompt has "):
            prompt = "messages" if "messages" in fields else "prompt"
            return HttpError(400, message, param=prompt, code="context_length_exceeded")
        case 400:
            word = message.split(" ", 1)[0].split("[", 1)[0].split(".", 1)[0].rstrip(":")
            named = _PARAMS.get(word, word)
            return HttpError(400, message, param=named if named in fields else None)
        case 404 if message.startswith("messages["):  # an upload that is not there (any more)
            return HttpError(404, message, param="messages")
        case 404:
            return HttpError(404, message, param="model", code="model_not_found")
        case 429 | 503:
            return HttpError(status, message, retry_after=DEFAULT_RETRY if retry is None else retry)
        case 502:
            return HttpError(502, "the gateway refused this server's credentials; whoever runs it must mend that")
        case _:
            return HttpError(status, message)


_PART = re.compile(r"^chat\.messages\[(\d+)\]\.parts\[(\d+)\]")
"""A part of a message, which has another name in a body."""

_PARAMS = {"chat": "messages", "token_ids": "prompt", "media": "file", "speech": "language"}
"""Fields whose names differ between the gateway and HTTP."""

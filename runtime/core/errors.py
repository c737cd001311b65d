"""Typed errors. Each class names exactly one status, so the mapping to the wire lives in one table (`STATUS_CODES` is the gRPC numbering).

Raise the most specific class; the message says what was wrong, what was expected and what to do.
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Outcome of a request or a call; numbers are those of gRPC (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TriptychError(Exception):
    """Base of every error that may reach a user. `status` is what the wire carries."""

    status: Status = Status.INTERNAL

    def __init__(self, message: str, *, retry_after: float | None = None):
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        """Seconds after which a retry may succeed, for overload."""


class InvalidRequestError(TriptychError):
    """The request itself is wrong; sending it again cannot help."""

    status = Status.INVALID_ARGUMENT


class UnknownModelError(TriptychError):
    """The named model is not served here."""

    status = Status.NOT_FOUND


class NotFoundError(TriptychError):
    """A named resource (request, handle, offer) does not exist or no longer exists."""

    status = Status.NOT_FOUND


class OverloadedError(TriptychError):
    """A bounded resource is full; `retry_after` says when to try again."""

    status = Status.RESOURCE_EXHAUSTED


class DeadlineError(TriptychError):
    """The request's deadline passed before it was finished."""

    status = Status.DEADLINE_EXCEEDED


class CancelledByClientError(TriptychError):
    """The client went away or aborted."""

    status = Status.CANCELLED


class InstanceLostError(TriptychError):
    """An instance that held part of the request died or was declared dead."""

    status = Status.UNAVAILABLE


class IncompatibleError(TriptychError):
    """Two sides disagree on model, layout, dtype, shape or protocol; the message is a readable difference."""

    status = Status.FAILED_PRECONDITION


class StaleEpochError(TriptychError):
    """A handle, call or heartbeat names an incarnation that no longer exists: what it held is lost, and another attempt may succeed."""

    status = Status.UNAVAILABLE


class TransferError(TriptychError):
    """Data could not be moved between instances."""

    status = Status.UNAVAILABLE


class TransferTimeoutError(TransferError):
    """A transfer did not finish before its deadline."""

    status = Status.DEADLINE_EXCEEDED


class ChecksumError(TransferError):
    """Data arrived but is not what was sent."""

    status = Status.DATA_LOSS


class ConfigError(TriptychError):
    """The process configuration is inconsistent; nothing was started."""

    status = Status.INVALID_ARGUMENT


class EngineError(TriptychError):
    """A device program failed; the instance's pool is lost and it starts a new epoch."""

    status = Status.INTERNAL


_BY_STATUS: dict[Status, type[TriptychError]] = {
    Status.CANCELLED: CancelledByClientError,
    Status.INVALID_ARGUMENT: InvalidRequestError,
    Status.DEADLINE_EXCEEDED: DeadlineError,
    Status.NOT_FOUND: NotFoundError,
    Status.RESOURCE_EXHAUSTED: OverloadedError,
    Status.FAILED_PRECONDITION: IncompatibleError,
    Status.UNAVAILABLE: InstanceLostError,
    Status.DATA_LOSS: ChecksumError,
}


def error_for(status: Status, message: str) -> TriptychError:
    """The error class a peer would have raised for `status` (used when a failure arrives over the wire)."""
    return _BY_STATUS.get(status, TriptychError)(message)

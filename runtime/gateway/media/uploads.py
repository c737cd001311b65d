"""Media that clients upload once and use in many requests, by handle.

A handle is good for whoever uploaded it: the same bearer token, or, where none is asked for, the same address.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import grpc

from triptych.proto.v1 import inference_pb2 as pb
from triptych.runtime.core.errors import InvalidRequestError, Status, TriptychError
from triptych.runtime.wire.auth import client_of


class UnsupportedMediaError(TriptychError):
    """The served model takes no media."""

    status = Status.UNIMPLEMENTED


def owner_of(context: grpc.aio.ServicerContext) -> str:
    """Whose uploads a call may use. A digest: nobody needs the token itself in memory."""
    return hashlib.blake2b(client_of(context).encode(), digest_size=16).hexdigest()

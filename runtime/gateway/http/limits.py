"""Who may ask, and how much at once: bearer tokens, and a bound on what runs."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from triptych.runtime.gateway.http.errors import HttpError


class Keys:
    """The bearer tokens that clients may present."""

    def __init__(self, keys: Sequence[str]):
        self._keys = [key.encode() for key in keys]

    def check(self, authorizations: Sequence[bytes]) -> str | None:
        """The key that was presented, None where none is asked for. Raises HttpError 401."""
        if not self._keys:
            return None
        if len(authorizations) != 1:
            raise HttpError(401, "no API key was given; expected a header 'Authorization: Bearer <key>'")
        scheme, _, given = authorizations[0].partition(b" ")
        # Every key is compared, each in constant time: how long a refusal takes tells nothing about a guess.
        matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise HttpError(401, "the API key is not valid here")
        return self._keys[matches.index(True)].decode()


class Bodies:
    """Bytes of all request bodies that are here, from their first part until their requests have ended."""

    def __init__(self, limit: int):
        self._limit = limit
        self.held = 0

    @contextmanager
    def room(self) -> Iterator[Room]:
        """For one body; what it has taken is given back when the context is left."""
        room = Room(self)
        try:
            yield room
        finally:
            self.held -= room.taken

    def check(self, more: int) -> None:
        """Raises HttpError 429 if `more` bytes do not fit."""
        if self.held + more > self._limit:
            raise HttpError(
                429,
                f"the bodies of open requests have {self.held} of at most {self._limit} bytes, and {more} more do not fit; retry later",
                retry_after=1.0,
                close=True,
            )


class Room:
    """What one body has taken of the bound on all."""

    def __init__(self, bodies: Bodies):
        self._bodies = bodies
        self.taken = 0

    def expect(self, size: int) -> None:
        """A body of `size` bytes is announced. Nothing is taken yet: who only announces keeps nobody out. Raises HttpError 429."""
        self._bodies.check(size)

    def take(self, size: int) -> None:
        """`size` more bytes are here. Raises HttpError 429."""
        self._bodies.check(size)
        self._bodies.held += size
        self.taken += size


class Places:
    """At most so many requests generate at once."""

    def __init__(self, limit: int):
        self._limit = limit
        self.taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises HttpError 429 when all are taken."""
        if self.taken >= self._limit:
            raise HttpError(
                429, f"{self.taken} requests are in flight, which is the most; retry later", retry_after=1.0
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

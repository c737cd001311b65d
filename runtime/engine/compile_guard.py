"""Proof that nothing compiles once an engine is ready: a count of every XLA compilation in this process.

JAX reports each one through `jax.monitoring`, programs of many layers and the one-operation programs of eager `jax.numpy` calls alike,
and also those that the persistent cache answers, which it tells apart. The counts begin with the first call of `compile_count` or `cache_hits`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import jax.monitoring

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


class CompiledError(AssertionError):
    """Something was compiled where everything should have been compiled before."""


class _Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.here = threading.local()
        self.compilations = 0
        self.cache_hits = 0
        jax.monitoring.register_event_duration_secs_listener(self._record)
        jax.monitoring.register_event_listener(self._record_hit)

    def _record(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT:
            with self._lock:
                self.compilations += 1

    def _record_hit(self, event: str, **kwargs: str | int) -> None:
        if event == CACHE_HIT_EVENT:
            self.here.hits = getattr(self.here, "hits", 0) + 1
            with self._lock:
                self.cache_hits += 1


@cache
def _counter() -> _Counter:
    return _Counter()


def compile_count() -> int:
    """Compilations in this process since the first call."""
    return _counter().compilations


def cache_hits() -> int:
    """Those of them that the persistent cache answered; 0 without one."""
    return _counter().cache_hits


def cache_hits_of_thread() -> int:
    """Those of them that this thread asked for."""
    return getattr(_counter().here, "hits", 0)


@contextmanager
def no_compilation() -> Iterator[None]:
    """Raises CompiledError on leaving if anything was compiled inside, in any thread."""
    before = compile_count()
    yield
    compiled = compile_count() - before
    if compiled:
        raise CompiledError(
            f"{compiled} programs were compiled after the engine was ready; look for eager jax.numpy calls and for arguments whose "
            "shape, dtype or sharding differs from what was compiled (jax.config jax_log_compiles names them)"
        )

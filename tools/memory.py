"""How a server process that runs for weeks keeps its memory level.

glibc gives each few threads an arena of their own, and after the first large block is freed it serves such blocks from arenas, where a small one that
lives on keeps a large hole. Neither is a leak, and neither is given back: requests of strange sizes from many connections made a gateway grow by 5 to 12 % in five
minutes, and by less than 1 % with the settings below (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
LIMITS = {
    "MALLOC_ARENA_MAX": (_ARENA_MAX, 2),
    "MALLOC_TRIM_THRESHOLD_": (_TRIM_THRESHOLD, 128 * 1024),
    "MALLOC_MMAP_THRESHOLD_": (_MMAP_THRESHOLD, 128 * 1024),
}


def keep_level(environ: Mapping[str, str] = os.environ) -> bool:
    """Have this process give back what it frees; call it before threads start. A limit that the environment sets stays as it is.

    Returns whether the C library took the limits; others than glibc have none, and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for name, (option, value) in LIMITS.items() if name not in environ)

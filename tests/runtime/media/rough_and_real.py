"""The real operations and the rough ones in one table."""

from __future__ import annotations

from tests.runtime.media.rough import OPERATIONS as ROUGH
from triptych.runtime.media.operations import OPERATIONS as REAL

OPERATIONS = REAL | ROUGH

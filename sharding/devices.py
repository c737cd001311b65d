"""`Device`: jax.Device as a type. JAX assigns that name at run time, so type checkers see a variable and refuse it in annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from jaxlib._jax import Device
else:
    Device = jax.Device

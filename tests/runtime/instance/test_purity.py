"""The instance's pure half runs anywhere: it imports neither jax nor grpc."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys
import triptych.runtime.instance.core
print([name for name in ("jax", "grpc", "numpy") if name in sys.modules])
"""


def test_the_core_imports_neither_jax_nor_grpc():
    answer = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

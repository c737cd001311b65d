"""Triptych: encode, prefill and decode as separate JAX programs on separate device meshes."""

__version__ = "0.1.0"

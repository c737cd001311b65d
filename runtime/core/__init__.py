"""The nouns every part of the runtime shares. No I/O, no JAX, no gRPC: importable anywhere, testable without anything running."""

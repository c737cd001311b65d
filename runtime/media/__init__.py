"""Media at the edge: what a gateway does with the bytes that clients send, before anything reaches a device. No JAX, no gRPC.

Read in this order: `source.py` (parts of a request to bytes), `sniff.py` (what the bytes are), `limits.py`, `decode.py` (one item to an array, through the
pool), `pool.py` (a bounded queue before decoder processes), `process.py`, `channel.py` and `child.py` (one such process, seen from both sides), `image.py`,
`audio.py`, `video.py` (what it runs), `identity.py` (content hashes), `store.py` (upload once, use often).

Pillow, soundfile, soxr and PyAV are imported in decoder processes only: what a hostile file can do, it does there.
"""

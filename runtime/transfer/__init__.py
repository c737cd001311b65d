"""Moving KV pages between instances: one protocol, several transports.

Read in this order: `header` (what both sides must agree on), `layout` (which heads make a chunk, and who holds it), `producer` and
`consumer` (the two ends), `delivery` (the hand-over to the device loop), `service` (gRPC), `transports` (how the bytes travel).
"""

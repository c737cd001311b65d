"""The control plane: a pure state machine over `core.control`, its policies, and a thin gRPC shell (`service.py`, `server.py`).

Read in this order: `state.py` (a request's life as a table), `cluster.py` (who exists, how loaded), `flow.py` (one request through its tasks),
`membership.py` (workers come and go), `scheduler.py` (events in, commands out).
"""

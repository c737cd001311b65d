"""The control plane: a pure state machine over `core.control`, its policies, and a thin gRPC shell (`service.py`, `server.py`).

Read in this order: `state.py` (a request's life as a table), `cluster.py` (who exists, how loaded), `flow.py` (one request through its tasks),
`lifecycle.py` (how tasks, attempts and requests begin and end), `membership.py` and `gateways.py` (workers and gateways come, go and come back),
`adoption.py` (what they hold is found again), `drains.py` (instances taken out of service), `scheduler.py` (events in, commands out).
"""

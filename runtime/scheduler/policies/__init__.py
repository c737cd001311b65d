"""Scheduling policies: `router.py` says which instances serve a request, `queue_order.py` which request is next."""

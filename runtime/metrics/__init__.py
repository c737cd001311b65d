"""Prometheus metrics: what each kind of process measures, and the port where it says so.

    registry.py    names, prefixes, labels that all samples share; the text that Prometheus reads
    requests.py    what a request took, as its client saw it: the base names that dashboards know
    http.py, scheduler.py, worker.py   what else a kind of process measures
    observer.py, tracing.py            the gateway's requests as they end: metrics, log lines, OpenTelemetry spans
    server.py      /metrics, /live and /ready on a port of their own

Rules: seconds and bytes; histograms for times; no label whose values are unbounded, hence none of a request. docs/metrics.md lists everything.
"""

"""`triptych bench`: load against a running server, and the numbers that serving papers report.

workload.py says what is sent and when, runner.py sends it open-loop and keeps what happened, metrics.py turns that into latencies, percentiles and
goodput, report.py shows them, compare.py runs two servers in turns. client.py is the only file that knows the wire. floor.py is another
question: how far one decode step is from what the memory allows.
"""

"""`triptych bench-sweep`: topologies of equally many devices on this host, each under the same open-loop load.

command.py     flags; interruption; what is written when
candidates.py  the topologies to compare, and that they have equally many devices
loads.py       loads by name, and what they are for a model and a rate
prompts.py     a load as requests with tokens and pictures
search.py      which rate comes next; pure
budget.py      seconds that are left, and their fair parts
sweep.py       every topology, every load, every rate; what fails is a row
live.py        a deployment of this host, and one point of it
client.py      the load generator's client, with pictures and with what the server timed
judge.py       records to a point: objectives met, latencies, tokens, lateness of the generator
losses.py      request by request against the monolith
report.py      tables, JSON
plot.py        a picture
"""

"""`triptych bench-engine`: the engine of one instance against what the machine's ceilings allow.

command.py    flags, and which parts run
ceilings.py   how fast this machine reads, copies and multiplies
work.py       bytes and operations of a step, and the least time that they need
rig.py        engines and instance cores for a part, on weights that all parts share
loop.py       one thread in the order of the device loop, with the time of each of its parts
steps.py      decode steps and mixed steps
prompts.py    prompts, whole and in chunks
batches.py    many requests at once: offline throughput
startup.py    a start in a process of its own, cold and warm
targets.py    what has to be reached on a known machine at known shapes
report.py     tables, JSON and a picture
"""

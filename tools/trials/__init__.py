"""Trials of a whole deployment of the toy model, with real processes: strange input (fuzz), faults (chaos), many requests (soak).

Each starts `triptych serve`, does its worst, and then asks the same questions: do normal requests work, has any process grown, is anything held?
"""

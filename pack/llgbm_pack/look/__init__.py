"""Looking at a finished set: inspect, export, stats, bench.

In comes a committed set; out go summaries, adapters, figures. Never changes the set. May import packing and all below it.
"""

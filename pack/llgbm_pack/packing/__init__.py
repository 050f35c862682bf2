"""From a plan to a committed set: workers, shards, resuming, the commit.

In comes a plan; out go shards, the commit record and a report. May import plan and all below it.
"""

"""A set against its sources: repair and compare.

In come a set and the zoo it was packed from; out go files put back to the bit, or what differs. May import packing and all
below it.
"""

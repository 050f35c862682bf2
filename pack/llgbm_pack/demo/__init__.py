"""A small real zoo, with deltas and a text tokenizer, to play with.

In comes an empty directory; out goes what a user would bring. May import packing and all below it.
"""

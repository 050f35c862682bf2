"""The command line: options, what is printed, and nothing else.

In come arguments; out go calls of the other rooms, lines or JSON, and exit codes. May import every room; no room imports it.
"""

"""Builds that ought to be refused, and what a refusal looks like."""

from __future__ import annotations

import re

from support.commands import Done, here


def pack(zoo, *more) -> Done:
    return here("build", zoo, zoo.parent / "out", "--workers", 1, "-q", *more)


def refused(done, *said):
    """A usage error in one line a stranger understands, and nothing written."""
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    for words in said:
        assert re.search(words, done.err), done.err

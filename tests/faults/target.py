"""What the children do: a small build on the command line, with a fault of the writer built in on demand."""

from __future__ import annotations

import pyarrow as pa

# What the command imports when it runs is imported here: once, before the forks.
from faults import mutants
from llgbm_pack.cli import (
    progress,  # noqa: F401
    render,  # noqa: F401
)
from llgbm_pack.cli.commands import main
from llgbm_pack.packing import build as build_set  # noqa: F401

pa.table({"a": [1]})  # imports pandas, where there is one


def build(mutant: str, args: list[str]) -> int:
    """``llgbm-pack build`` in this process, by this name of a mutant ("" for none)."""
    if mutant:
        mutants.MUTANTS[mutant]()
    main(["build", *args])
    return 0

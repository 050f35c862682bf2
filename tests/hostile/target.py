"""What the children do with hostile input: the commands, as a user would run them."""

from __future__ import annotations

from llgbm_pack.cli.commands import check_main, main


def check(path: str) -> int:
    """``llgbm-check --level deep``."""
    check_main([path, "--level", "deep"])
    return 0


def full(path: str) -> int:
    """``llgbm-check``."""
    check_main([path])
    return 0


def command(args: list[str]) -> int:
    """Any ``llgbm-pack`` command."""
    main(args)
    return 0

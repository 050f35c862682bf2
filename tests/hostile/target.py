"""What the children do with hostile input: the commands, as a user would run them."""

from __future__ import annotations

from llgbm_pack.cli import check_main, main


def check(path: str) -> int:
    """``llgbm-check --level deep``."""
    check_main([path, "--level", "deep"])
    return 0


def quick(path: str) -> int:
    """``llgbm-check --level quick``."""
    check_main([path, "--level", "quick"])
    return 0


def command(args: list[str]) -> int:
    """Any ``llgbm-pack`` command."""
    main(args)
    return 0

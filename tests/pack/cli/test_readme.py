"""Every command and every option that the README names is in the program's help."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from llgbm_pack.cli.commands import check_main, main
from support.commands import here

README = (Path(__file__).parents[3] / "README.md").read_text()


def quoted():
    """Code in the README: lines of blocks, a continued line as one, and what stands between backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    return [*lines, *re.findall(r"`([^`]+)`", prose)]


def commands():
    """(command, its options) as the README writes them; check for llgbm-check."""
    for code in quoted():
        words = shlex.split(code, comments=True) if code.startswith("llgbm-") else []
        if words[:1] == ["llgbm-check"]:
            words = ["llgbm-pack", "check", *words[1:]]
        if words[:1] == ["llgbm-pack"] and len(words) > 1:
            yield words[1], {word for word in words if word.startswith("-")}


def options(command: click.Command) -> set[str]:
    own = {name for parameter in command.params for name in parameter.opts if name.startswith("-")}
    return own | {"--help"}


def test_commands_and_their_options():
    named = list(commands())
    assert len(named) > 10
    assert {name for name, _ in named} == main.commands.keys()
    for name, given in named:
        assert given <= options(main.commands[name]), name
    assert options(check_main) == options(main.commands["check"])


@pytest.mark.parametrize("name", main.commands)
def test_help_shows_every_option(name):
    text = here(name, "--help").out
    assert [option for option in options(main.commands[name]) if option not in text] == []


def test_options_that_stand_alone():
    named = {code.split()[0] for code in quoted() if code.startswith("-")}
    assert len(named) > 12
    assert named <= set().union(*map(options, main.commands.values()))

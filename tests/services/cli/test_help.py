"""The help of ``mlpa``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from services.cli.commands import cli


def groups(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        yield path
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from groups(found, (*path, name))


@pytest.mark.parametrize("path", list(groups(cli)), ids=" ".join)
def test_no_sentence_of_the_overview_is_cut_off(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"], terminal_width=80).stdout
    commands = shown.partition("Commands:\n")[2]
    assert commands
    assert "..." not in commands


def test_the_shell_completes_commands() -> None:
    mlpa = str(Path(sys.executable).with_name("mlpa"))
    given = {"_MLPA_COMPLETE": "bash_complete", "COMP_WORDS": "mlpa ledger pr", "COMP_CWORD": "2"}
    done = subprocess.run([mlpa], env={**os.environ, **given}, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "plain,prune"

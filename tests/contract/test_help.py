"""`--help` of every command: two examples that the command itself can parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from styleclip_rt.engines.errors import MissingDependency
from styleclip_rt.runtime.cli import cli

EXAMPLE = re.compile(r"^\s*(?:eval \"\$\()?(styleclip-rt\b[^\n>)|]*)", re.MULTILINE)


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command, info_name="styleclip-rt")
        for name in command.list_commands(context):
            try:
                child = command.get_command(context, name)
            except MissingDependency:  # tests/contract/test_torch_free.py covers it
                continue
            if child is not None:
                yield from _commands(child, (*path, name))


PATHS = list(_commands(cli))


def _examples(path: tuple[str, ...]) -> list[str]:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0, result.output
    usage, _, rest = result.output.partition("\n")
    assert usage.startswith("Usage:")
    return [match.strip() for match in EXAMPLE.findall(rest)]


@pytest.mark.parametrize("path", PATHS, ids=[" ".join(p) or "styleclip-rt" for p in PATHS])
def test_help_shows_two_examples_that_parse(path: tuple[str, ...]) -> None:
    examples = _examples(path)
    assert len(examples) >= 2, examples
    for example in examples:
        _parse(shlex.split(example)[1:])


def _parse(arguments: list[str]) -> None:
    """Follow the sub-commands, then let the last one's parser see its options; no value is converted, nothing runs."""
    command: click.Command = cli
    context = click.Context(cli, info_name="styleclip-rt")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        try:
            child = command.get_command(context, arguments[0])
        except MissingDependency:  # a torch command, in an environment without torch
            return
        assert child is not None, f"no command {arguments[0]!r}"
        context = click.Context(child, info_name=arguments[0], parent=context)
        command, arguments = child, arguments[1:]
    command.make_parser(context).parse_args(args=list(arguments))  # raises NoSuchOption


def test_the_torch_commands_are_seen_where_torch_is_installed() -> None:
    pytest.importorskip("torch", reason="without torch these commands only name the extra")
    assert ("export",) in PATHS
    assert ("demo", "train") in PATHS


def test_version() -> None:
    import styleclip_rt

    result = CliRunner().invoke(cli, ["--version"])
    assert result.output.strip() == f"styleclip-rt {styleclip_rt.__version__}"

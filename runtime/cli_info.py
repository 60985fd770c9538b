"""`styleclip-rt info` and `styleclip-rt completion`."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from typing import Any

import click

from . import store
from .cli_common import json_option, print_json
from .store import Found

PACKAGES = ("numpy", "pillow", "click", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
            "tensorrt-rtx-cu13-bindings", "cuda-bindings", "pycuda", "torch",
            "open_clip_torch", "onnx", "onnxscript", "safetensors")  # fmt: skip

INFO_EPILOG = """\b
Examples:
  styleclip-rt info
  styleclip-rt info --json
"""

COMPLETION_EPILOG = """\b
Examples:
  eval "$(styleclip-rt completion bash)"
  styleclip-rt completion fish > ~/.config/fish/completions/styleclip-rt.fish
"""


@click.command(epilog=INFO_EPILOG)
@json_option
def info(as_json: bool) -> None:
    """Say what is installed, which engines can run and why not, and which bundles are there."""
    record = gather()
    if as_json:
        print_json(record)
        return
    click.echo(f"styleclip-rt {record['version']}, Python {record['python']}, {record['platform']}")
    click.echo("\npackages")
    for name, version in record["packages"].items():
        click.echo(f"  {name:<26} {version or '-'}")
    click.echo("\nengines")
    for engine in record["engines"]:
        click.echo(_engine_line(engine))
    click.echo(f"\nbundles (exports go to {record['home']}/bundles)")
    for bundle in record["bundles"]:
        click.echo(f"  {bundle['name']:<24} {bundle['origin']:<8} {bundle['path']}")
        click.echo(f"    prompts: {', '.join(bundle['prompts']) or 'free text alone'}")
        click.echo(f"    mappers: {', '.join(bundle['mappers']) or 'none'}")
        if bundle["directions"]:
            click.echo(f"    directions: {', '.join(bundle['directions'])}")
    if not record["bundles"]:
        click.echo("  none; make one with `styleclip-rt export --prompt bob-cut`")


def gather() -> dict[str, Any]:
    """Everything that `info` tells; imports no backend but what the probe itself needs."""
    from .. import __version__
    from ..engines.select import probe

    bundles = [*store.exports(), *store.shipped()]
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: _version(name) for name in PACKAGES},
        "engines": [dataclasses.asdict(status) for status in probe()],
        "home": str(store.home()),
        "bundles": [_bundle(found) for found in bundles],
    }


@click.command(epilog=COMPLETION_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL, to be evaluated or saved."""
    from click.shell_completion import get_completion_class

    from .cli import cli

    shell_class = get_completion_class(shell)
    if shell_class is None:  # click knows all three
        raise click.UsageError(f"no completion for {shell}")
    click.echo(shell_class(cli, {}, "styleclip-rt", "_STYLECLIP_RT_COMPLETE").source())


def _bundle(found: Found) -> dict[str, Any]:
    """A bundle and what it can do; the first prompt is the default."""
    prompts = store.prompts_of(found.path)
    mappers = [name for name, mapped in prompts.items() if mapped]
    place = {"name": found.name, "origin": found.origin, "path": str(found.path)}
    return {**place, "prompts": list(prompts), "mappers": mappers, "directions": store.directions_of(found.path)}


def _engine_line(engine: dict[str, Any]) -> str:
    state = "usable" if engine["usable"] else "not usable"
    why = f": {engine['reason']}" if engine["reason"] else ""
    mend = f"\n      mend it with: {engine['mend']}" if engine.get("mend") else ""
    note = f" [{engine['note']}]" if engine.get("note") else ""
    return f"  {engine['name']:<20} {engine['device']:<5} {engine['version'] or '-':<10} {state}{why}{note}{mend}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

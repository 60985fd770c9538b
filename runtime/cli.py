"""The command line `styleclip-rt`. Commands are imported when called, so that none pays for another's libraries."""

from __future__ import annotations

import sys

import click

from .. import __version__
from .cli_common import LazyGroup

# name -> (module:attribute, summary). Strings, because export and training are layers above this one.
COMMANDS = {
    "edit": ("styleclip_rt.runtime.cli_edit:edit", "Edit a photo towards a text."),
    "invert": ("styleclip_rt.runtime.cli_latents:invert", "Turn a photo into a latents file."),
    "generate": ("styleclip_rt.runtime.cli_latents:generate", "Draw random faces from seeds."),
    "optimize": (
        "styleclip_rt.runtime.training.cli_optimize:optimize",
        "Edit faces towards a text by optimising their latents (needs torch).",
    ),
    "info": ("styleclip_rt.runtime.cli_info:info", "What is installed, which engines run, which bundles are there."),
    "kernels": (
        "styleclip_rt.runtime.cli_kernels:kernels",
        "Compile the kernels of this machine's CPU, once (needs a C++ compiler).",
    ),
    "export": (
        "styleclip_rt.export.command:export_command",
        "Export an engine bundle from a model pack (needs torch).",
    ),
    "pack": (
        "styleclip_rt.runtime.training.checkpoints.command:pack",
        "Import public checkpoints into a model pack; look at one; verify it (needs torch).",
    ),
    "train": (
        "styleclip_rt.runtime.training.command:train",
        "Train mappers, directions and inverters on a pack (needs torch).",
    ),
    "evaluate": (
        "styleclip_rt.benchmarks.evaluate_command:evaluate",
        "Compare the methods on the same faces and prompts; recommend settings (needs torch).",
    ),
    "demo": ("styleclip_rt.runtime.training.demo.command:demo", "Train or evaluate the embedded pack (needs torch)."),
    "bench": (
        "styleclip_rt.benchmarks.command:bench",
        "Measure every engine beside the code of the original, in turns, in one run.",
    ),
    "completion": ("styleclip_rt.runtime.cli_info:completion", "Print the completion script of a shell."),
}

EPILOG = """\b
Examples:
  styleclip-rt edit portrait.jpg --prompt "purple hair" --alpha 3 --beta 0.12
  styleclip-rt export --prompt bob-cut
"""


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="styleclip-rt", message="%(prog)s %(version)s")
def cli() -> None:
    """Text-driven face editing (StyleCLIP) from exported engines."""


def main() -> None:
    """Entry point of the console script; Ctrl-C at any moment ends without a traceback."""
    try:
        cli.main(prog_name="styleclip-rt")
    except KeyboardInterrupt:
        sys.exit(130)

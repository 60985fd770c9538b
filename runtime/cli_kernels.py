"""`styleclip-rt kernels`: the library of custom operators of ONNX Runtime, compiled for this machine."""

from __future__ import annotations

import time
from typing import Any

import click

from ..engines.errors import StyleclipError
from .cli_common import json_option, print_json

EPILOG = """\b
Examples:
  styleclip-rt kernels
  styleclip-rt kernels --rebuild --json
"""


@click.command(epilog=EPILOG)
@click.option("--rebuild", is_flag=True, help="Compile again, also where a library was found wrong before.")
@json_option
def kernels(rebuild: bool, as_json: bool) -> None:
    """Compile our own kernels for ONNX Runtime on the CPU, try them, and keep them for every later command.

    The compiler is $CXX, else c++, g++ or clang++ on the path, else the one of the extra `kernels`. An edit on the CPU
    without --engine uses them from then on.
    """
    record = make(rebuild)
    if as_json:
        print_json(record)
        return
    click.echo(describe(record))


def make(rebuild: bool = False) -> dict[str, Any]:
    """Build the library where it is not there yet: whether it was built now, in how long, with what, and where it is.

    Raises what `ort_kernels.build_kernels` raises.
    """
    from ..engines.ort_kernels import build_kernels

    start = time.monotonic()
    library, built = build_kernels(lambda text: click.echo(text, err=True), rebuild)
    about = {"compiler": library.made.compiler, "onnxruntime": library.made.onnxruntime}
    seconds = round(time.monotonic() - start, 1) if built else None
    return {"built": built, "seconds": seconds, "path": str(library.path), "bytes": len(library.content), **about}


def make_beside() -> None:
    """The same at the end of another command, which stands whatever comes of it: one line on stderr.

    Nothing is said where they are there, where there is no compiler, and on machines that they are not for.
    """
    from ..engines.kernels import NOT_BUILT, compiler, fault

    try:
        if fault() == NOT_BUILT and compiler():
            click.echo(describe(make()), err=True)
    except StyleclipError as error:
        click.echo(f"warning: no kernels for this machine: {' '.join(str(error).split())}", err=True)


def describe(record: dict[str, Any]) -> str:
    """What `make` gave, in a line."""
    state = f"built in {record['seconds']:.1f} s" if record["built"] else "there"
    return f"kernels: {state}, compiled with {record['compiler']}, {record['path']}"

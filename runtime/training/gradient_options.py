"""The options of `train directions --method gradient`, and from them to a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...engines.errors import InputError
from ..cli_common import F

if TYPE_CHECKING:
    from .pack import Pack

ALONE = ("prompt", "neutral", "name", "alpha", "beta", "preview", "sheet")
FINITE = ("sigmas", "tolerance", "compat", "block", "work", "render_at")


def gradient_options(command: F) -> F:
    """What a direction of one prompt needs, on top of the options of the table."""
    for option in reversed((
        click.option("--prompt", metavar="NAME|TEXT",
                     help="By gradient: find this prompt alone, as a named direction. Default: the whole table."),
        click.option("--neutral", metavar="TEXT", help="What the prompt is compared with."),
        click.option("--name", metavar="NAME", help="Name of the direction in the pack.  [default: the prompt's]"),
        click.option("--alpha", type=click.FloatRange(-100, 100), metavar="STRENGTH",
                     help="Recommended strength.  [default: the prompt's, else 3]"),
        click.option("--beta", type=click.FloatRange(0, 1), metavar="0..1",
                     help="Recommended threshold.  [default: what keeps a twelfth of the channels]"),
        click.option("--preview", multiple=True, metavar="PHOTO|LATENTS|SEED",
                     help="Show the edit on this face, without an export; may be repeated. Without --out nothing "
                     "else is written."),
        click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                     help="Where the preview goes."),
    )):  # fmt: skip
        command = option(command)
    return command


def check_foreign(method: str) -> None:
    """InputError for options of the command that the method would not heed."""
    context = click.get_current_context()
    given = [
        name
        for name in (FINITE if method == "gradient" else ALONE)
        if context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
    ]
    if given:
        words = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"--method {method} does not know {words}; see `styleclip-rt train directions --help`")


def run_gradient(pack: Pack, options: dict[str, Any]) -> dict[str, Any]:
    """The plan under --dry-run, else the finished run; JSON-ready."""
    from .gradient import GradientRecipe
    from .gradient_run import SAMPLES, GradientRequest, make_plan, train_gradient

    asked = click.get_current_context().get_parameter_source
    sized = {"images": options["images"]} if asked("images") is ParameterSource.COMMANDLINE else {}
    samples = options["samples"] if asked("samples") is ParameterSource.COMMANDLINE else SAMPLES
    request = GradientRequest(
        recipe=GradientRecipe(channels=options["channels"], **sized),
        out=options["out"],
        convention=options["convention"],
        samples=samples,
        **{name: options[name] for name in ALONE},
    )
    plan = make_plan(pack, request)
    return plan.to_dict() if options["dry_run"] else train_gradient(plan)

"""`styleclip-rt train`: mappers, channel directions and inverters for a user's own pack."""

from __future__ import annotations

import click

from ..cli_common import LazyGroup
from .memory import keep_freed_memory

# name -> (module:attribute, summary)
TRAININGS: dict[str, tuple[str, str]] = {
    "mapper": ("styleclip_rt.runtime.training.cli_mapper:mapper", "A latent mapper for one prompt."),
    "directions": ("styleclip_rt.runtime.training.cli_directions:directions", "The channel directions of a pack."),
    "inverter": ("styleclip_rt.runtime.training.cli_inverter:inverter", "An encoder photo -> w+ for a generator."),
    "neighbours": (
        "styleclip_rt.runtime.training.cli_neighbours:neighbours",
        "Directions by GANSpace, InterFaceGAN and StyleSpace.",
    ),
}

EPILOG = """\b
Examples:
  styleclip-rt train mapper --prompt bob-cut --out my-pack
  styleclip-rt train directions --pack ffhq --channels all --out my-pack
  styleclip-rt train inverter --pack my-pack --photos photos/
  styleclip-rt train neighbours --method ganspace --components 8 --out my-pack
"""


@click.group(cls=LazyGroup, lazy=TRAININGS, epilog=EPILOG)
def train() -> None:
    """Train on top of a model pack; every training is resumable and its result goes into a pack."""
    keep_freed_memory()

"""`styleclip-rt train`: mappers, channel directions and inverters for a user's own pack."""

from __future__ import annotations

import click

from ..cli_common import LazyGroup

# name -> (module:attribute, summary)
TRAININGS: dict[str, tuple[str, str]] = {}

EPILOG = """\b
Examples:
  styleclip-rt train --help
"""


@click.group(cls=LazyGroup, lazy=TRAININGS, epilog=EPILOG)
def train() -> None:
    """Train on top of a model pack; every training is resumable and its result goes into a pack."""

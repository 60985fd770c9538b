"""What the training commands print: a plan before the work, a table after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from ..cli_common import print_json


def show_plan(record: Mapping[str, Any], as_json: bool) -> None:
    """A plan as JSON or as aligned lines, its settings last."""
    if as_json:
        print_json(dict(record))
        return
    plan = {key: value for key, value in record.items() if key != "settings"}
    for key, value in {**plan, **record["settings"]}.items():
        click.echo(f"{key:16} {value}")


def closing_table(rows: Mapping[str, str], notes: Iterable[str] = ()) -> str:
    """Aligned lines, then a line for each note."""
    return "\n".join([*(f"{key:10} {value}" for key, value in rows.items()), *(f"note: {note}" for note in notes)])

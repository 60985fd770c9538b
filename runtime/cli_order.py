"""Which --alpha belongs to which --prompt or --direction, from their order on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import click

T = TypeVar("T")
ORDER = "styleclip_rt.order"


class OrderedCommand(click.Command):
    """A command that remembers the order of its options in `ctx.meta[ORDER]`: a list of parameter names."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Click's parser, whose parse_args also reports the order of the parameters."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> tuple[Any, Any, Any]:
            options, rest, order = parse(args=args)
            ctx.meta[ORDER] = [param.name for param in order]
            return options, rest, order

        parser.parse_args = parse_args  # type: ignore[method-assign]
        return parser


def paired(
    order: Sequence[str], name: str, values: Sequence[T], prompts: int, heads: Sequence[str] = ("prompts",)
) -> list[T | None]:
    """`values` of option `name`, one for each prompt, None where none was given; `heads` are the options that count.

    As many values as prompts: the k-th belongs to the k-th prompt. Otherwise a value serves the prompts before it that
    have none yet, and one before all prompts serves those that get no other. Raises click.UsageError for one too many.
    """
    if len(values) == max(1, prompts):
        return list(values)
    assigned: list[T | None] = [None] * max(1, prompts)
    leading: T | None = None
    remaining, seen = list(values), 0
    for option in order:
        seen += option in heads
        if option != name or not remaining:
            continue
        value = remaining.pop(0)
        waiting = [i for i in range(seen) if assigned[i] is None]
        if seen == 0 and leading is None:
            leading = value
        elif waiting:
            for i in waiting:
                assigned[i] = value
        else:
            what = " or ".join(head.rstrip("s") for head in heads)
            option = "resolutions" if name == "resolutions" else name.rstrip("s")
            raise click.UsageError(f"{len(values)} values of --{option} for {prompts} {heads[0]}: one has no {what}")
    return [leading if value is None else value for value in assigned]

"""What each graph of a bundle is made from: which of them a pack allows, and what the others lack."""

from __future__ import annotations

from collections.abc import Iterable

NEEDS: dict[str, tuple[str, ...]] = {
    "mapping": ("generator",),
    "style": ("generator",),
    "synthesize": ("generator",),
    "synthesize_u8": ("generator",),
    "invert": ("generator", "inverter"),
    "identify": ("identity",),
    "encode_text": ("clip",),
    "encode_image": ("clip",),
    "direction": ("generator", "clip", "statistics", "directions"),
    "edit_global": ("generator", "clip", "statistics", "directions"),
}
"""The components that each graph is made from; `mapper/<name>` and its edit need the generator and the mapper."""


def lacking(components: Iterable[str], mappers: Iterable[str] = ()) -> dict[str, list[str]]:
    """{graph: components it still needs} for every graph; an empty list says that it can be made."""
    there = set(components)
    needs = {**NEEDS, **{f"edit_mapper/{name}": ("generator", f"mapper/{name}") for name in mappers}}
    return {graph: [part for part in parts if part not in there] for graph, parts in needs.items()}

"""Named directions of a pack in a bundle: one table of rows that numpy reads, and an entry of the manifest for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.training.named import read
from ..runtime.training.pack import Pack

TABLE = "directions.npy"


def write_directions(folder: Path, pack: Pack) -> dict[str, Any]:
    """Writes the table of all named directions of the pack; returns `directions` and `direction_table` of bundle.json.

    Nothing is written, and {} returned, for a pack that has none or no generator that could take them. Raises PackError
    for a direction that is damaged or made for another generator.
    """
    if not (pack.directions_named and pack.has("generator")):
        return {}
    rows: list[np.ndarray] = []
    entries = {}
    for name in pack.directions_named:
        direction = read(pack, name)
        vectors = [v for v in (direction.delta_s, direction.relevance) if v is not None]
        entries[name] = {
            "row": len(rows),
            "relevance_row": None if direction.relevance is None else len(rows) + 1,
            **{key: direction.config.get(key) for key in ("method", "target", "neutral")},
            "alpha": direction.config.get("alpha", 1.0),
            "beta": direction.config.get("beta"),
        }
        rows += [vector.numpy() for vector in vectors]
    np.save(folder / TABLE, np.stack(rows).astype("<f4"), allow_pickle=False)
    return {"directions": entries, "direction_table": TABLE}

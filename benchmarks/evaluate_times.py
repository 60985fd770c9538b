"""Table 1 of the paper: what each method costs before the first picture, for each text, and for each picture.

Times of different machines, and of one machine on different days, do not compare. So the methods take turns on the same
face, and what is reported is the median over the rounds of the ratio within a round; milliseconds stand beside it with
the name of the machine. Preparations are measured on a slice and multiplied up; `slice` says how large it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import get_num_threads

from ..runtime.model import Prompt
from ..runtime.training.directions import DirectionRecipe, direction_table
from ..runtime.training.directions_finite import front_of
from ..runtime.training.loop import device
from ..runtime.training.mapper import MapperNetworks, preset, train_mapper
from ..runtime.training.subject import Faces, Subject
from .evaluate_methods import Edit, Ways, edits_of, global_edit
from .machine import environment

Row = dict[str, Any]
ROUNDS = 5
FIRST = "global"
"""The method whose edit is the unit of time."""


def edit_times(subject: Subject, prompt: Prompt, ways: Ways, faces: Faces, rounds: int = ROUNDS) -> list[Row]:
    """Time of one picture in every way, in turns, one face at a time; empty where nothing can be the unit.

    The text is embedded before (all methods need it); the direction is computed anew each time.
    """
    edits, _ = edits_of(subject, prompt, ways)
    calls = {edit.label: _call(subject, edit) for edit in edits}
    if FIRST not in calls or not len(faces):
        return []
    for call in calls.values():  # whatever is set up on the first call is not a picture's time
        call(faces.take(np.array([0])))
    laps: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        order = list(calls) if i % 2 == 0 else list(reversed(calls))
        for name in order:
            laps[name].append(_seconds(partial(calls[name], faces.take(np.array([i % len(faces)])))))
    return [_row(subject, "picture", name, laps[name], laps[FIRST], "") for name in calls]


def _call(subject: Subject, edit: Edit) -> Callable[[Faces], object]:
    def call(faces: Faces) -> object:
        ready = global_edit(subject, edit.prompt, beta=edit.settings["beta"]) if edit.method == FIRST else edit
        return subject.render(ready.move(faces, ready.alpha).s)

    return call


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _row(subject: Subject, what: str, method: str, laps: list[float], unit: list[float], part: str) -> Row:
    about = environment(next(subject.generator.parameters()).device.type, get_num_threads())
    machine = f"{about['gpu'] or about['cpu']}, {about['threads']} threads"
    return {
        "what": what,
        "method": method,
        "ratio": float(f"{np.median(np.array(laps) / np.array(unit)):.4g}"),
        "median_ms": float(f"{1e3 * np.median(laps):.4g}"),
        "rounds": len(laps),
        "slice": part,
        "machine": machine,
        "torch": about["packages"].get("torch", ""),
        "date": about["date"][:10],
    }


def preparation_times(subject: Subject, prompt: Prompt, faces: Faces, unit_s: float) -> list[Row]:
    """Time of a mapper's training and of the table of directions, from a slice of each; unit_s: one picture's time."""
    mapper, table = _training_seconds(subject, prompt), _table_seconds(subject, faces)
    return [
        _row(subject, "training for a text", "mapper", [mapper[0]], [unit_s], mapper[1]),
        _row(subject, "preparation of a model", FIRST, [table[0]], [unit_s], table[1]),
    ]


def _training_seconds(subject: Subject, prompt: Prompt, few: int = 3, more: int = 9) -> tuple[float, str]:
    """Seconds of the prompt's preset, from the difference between `more` and `few` steps."""
    settings = preset(prompt.name)
    networks = MapperNetworks(subject.generator, subject.clip.encode_image, subject.identity)

    def run(steps: int) -> None:
        with TemporaryDirectory() as work:
            text = subject.pair(prompt.target, prompt.neutral)
            train_mapper(prompt.name, Path(work), networks, text, replace(settings, steps=steps))

    run(2)
    laps = [_seconds(partial(run, steps)) for steps in (few, more)]
    each = max(0.0, laps[1] - laps[0]) / (more - few)
    return each * settings.steps, f"{more - few} of {settings.steps} steps of the training"


def _table_seconds(subject: Subject, faces: Faces, images: int = 2) -> tuple[float, str]:
    """Seconds of the whole table at the pack's own count of images, from a table over `images` of them."""
    config = subject.pack.config("directions")
    wanted = int(config.get("images") or DirectionRecipe().images)
    base = faces.w[:images].to(device())
    recipe = DirectionRecipe(len(base), channels="all" if config.get("channels") == "all" else "conv")
    statistics, encode, front = subject.pack.statistics, subject.clip.encode_image, front_of(subject.clip)
    taken = _seconds(lambda: direction_table(subject.generator, encode, statistics, base, recipe, front=front))
    return taken * wanted / len(base), f"{len(base)} of {wanted} images of the table"


def measure(
    subject: Subject, prompts: Sequence[Prompt], ways: Ways, faces: Faces, preparations: bool = False
) -> list[Row]:
    """The times of the first prompt that most ways can follow; with those of the preparations where asked for."""
    ready = [(len(edits_of(subject, prompt, ways)[0]), -i) for i, prompt in enumerate(prompts)]
    prompt = prompts[-max(ready)[1]]
    rows = edit_times(subject, prompt, ways, faces)
    if rows and preparations:
        unit_s = next(row["median_ms"] for row in rows if row["method"] == FIRST) / 1e3
        rows += preparation_times(subject, prompt, faces, unit_s)
    return rows

"""The edit as a user meets it, on a bundle: stage by stage, by slider, and the time to open it. Runs as a process.

python -m styleclip_rt.benchmarks.editing '{"what": "stages", "bundle": "toyfaces", ...}'
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..runtime.editor import Editor
from ..runtime.prompts import TextEncoder, resolve
from ..runtime.steps import plan
from ..runtime.store import sample_portrait
from .memory import peak_rss_mib
from .plan import ALL_LAYERS, LOAD_ALL, LOAD_EDIT
from .samples import Latencies
from .worker import private_stdout

Rows = list[dict[str, Any]]
ALPHAS = (-3.0, -1.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
GRID = f"grid of {len(ALPHAS)}"
"""What a row is called whose steps run as one batch."""
WHOLE = "first layer"
"""Where a step starts that repeats the whole synthesis."""


def laps_of(steps: dict[str, Callable[[], object]], calls: int) -> dict[str, Latencies]:
    """Each step `calls` times, the steps in turns, after one untimed turn; latencies by step."""
    laps = {name: Latencies() for name in steps}
    for number in range(calls + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                laps[name].ms.append(1e3 * (time.perf_counter() - start))
    return laps


def stages(editor: Editor, calls: int) -> Rows:
    """Decode, invert, text (with and without its cache), direction, synthesize, encode: one row each."""
    prompt = resolve(editor.model, None)
    photo = editor.photo(sample_portrait())
    w = editor.invert(photo)
    delta_t = editor.text.delta_t(prompt)[None]
    (step,), _ = editor.directions(plan(editor.model), delta_t)
    feeds = {
        "w": w,
        "delta_t": delta_t,
        "alpha": np.array([step.alpha], np.float32),
        "beta": np.array([step.beta], np.float32),
    }
    picture = editor.edit_latents(w).image
    laps = laps_of(
        {
            "decode": lambda: editor.photo(sample_portrait()),
            "invert": lambda: editor.invert(photo),
            "text": lambda: TextEncoder(editor.bundle, editor.model).delta_t(prompt),
            "text (cached)": lambda: editor.text.delta_t(prompt),
            "direction": lambda: editor.directions((step,), delta_t),
            "synthesize": lambda: editor.bundle.run("edit_global", **feeds),
            "encode": lambda: picture.save(io.BytesIO(), "PNG"),
        },
        calls,
    )
    return [{"kind": "stage", "name": name, **found.columns()} for name, found in laps.items()]


def sliders(editor: Editor, calls: int) -> Rows:
    """A slider's step against a whole edit from the same latents, by prompt, and steps of a grid.

    Prompts with recommended layers move those alone; a second row moves all of them.
    """
    w = editor.invert(editor.photo(sample_portrait()))
    prompts = editor.model.prompts
    wanted = [
        (name, way) for name, prompt in prompts.items() for way in (None, *(("all",) if prompt.resolutions else ()))
    ]
    rows = [slider_row(editor, w, name, resolutions, calls) for name, resolutions in wanted]
    return rows + [grid_row(editor, w, name, calls) for name in prompts]


def grid_row(editor: Editor, w: Any, prompt: str, calls: int) -> dict[str, Any]:
    """One prompt: the strengths `ALPHAS` in one batch of a slider, in turns with whole edits; a step is its share."""
    slider = editor.slider(w, prompt)
    order = iter(_endless(ALPHAS))
    laps = laps_of(
        {
            "edit": lambda: editor.edit_latents(w, prompt, next(order)),
            "grid": lambda: slider.grid(ALPHAS),
        },
        calls,
    )
    share = Latencies([ms / len(ALPHAS) for ms in laps["grid"].ms])
    gain = float(np.median(np.array(laps["edit"].ms) / np.array(share.ms)))
    start = WHOLE if slider.cut is None else slider.cut.layer
    row = {"kind": "slider", "name": f"{prompt}, {GRID}", **share.columns(), "gain": gain, "start": start}
    return row | {"saved": float(slider.saved), "resolutions": slider.step.resolutions}


def slider_row(editor: Editor, w: Any, prompt: str, resolutions: str | None, calls: int) -> dict[str, Any]:
    """One prompt: the layer that a step starts from, and the two medians in turns; `gain` is how many times faster.

    resolutions: for the step and for the edit that it is compared with; None: those recommended for the prompt.
    """
    slider = editor.slider(w, prompt, resolutions=resolutions)
    slider.at(1.0)
    order = iter(_endless(ALPHAS))
    laps = laps_of(
        {
            "edit": lambda: editor.edit_latents(w, prompt, next(order), resolutions=resolutions),
            "step": lambda: slider.at(next(order)),
        },
        calls,
    )
    gain = float(np.median(np.array(laps["edit"].ms) / np.array(laps["step"].ms)))
    start = WHOLE if slider.cut is None else slider.cut.layer
    name = prompt if resolutions is None else f"{prompt}, {ALL_LAYERS}"
    row = {"kind": "slider", "name": name, **laps["step"].columns(), "gain": gain, "start": start}
    return row | {"saved": float(slider.saved), "resolutions": slider.step.resolutions}


def _endless(values: Iterable[float]) -> Iterable[float]:
    while True:
        yield from values


def opening(bundle: str, device: str, engine: str | None, step: str) -> Rows:
    """One step of opening a bundle, for the first time in this process: its libraries are loaded in this time too.

    step: of `plan.OPENING_STEPS`; the edit is the graph `edit_global`.
    """
    start = time.perf_counter()
    with Editor.open(bundle, device=device, engine=engine) as editor:
        wanted: dict[str, tuple[str, ...]] = {LOAD_EDIT: ("edit_global",), LOAD_ALL: editor.bundle.graphs}
        for graph in wanted.get(step, ()):
            editor.bundle.engine(graph)
        elapsed = 1e3 * (time.perf_counter() - start)
    return [{"kind": "opening", "name": step, "p50_ms": elapsed}]


def main() -> None:
    """Answer one request with {"rows": [...]} on stdout."""
    answers, request = private_stdout(), json.loads(sys.argv[1])
    bundle, device, engine, calls = (request[key] for key in ("bundle", "device", "engine", "calls"))
    if request["what"] == "opening":
        rows = opening(bundle, device, engine, request["step"])
    else:
        with Editor.open(bundle, device=device, engine=engine) as editor:
            rows = {"stages": stages, "sliders": sliders}[request["what"]](editor, calls)
    answers.write(json.dumps({"rows": [row | {"peak_rss_mib": peak_rss_mib()} for row in rows]}) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()

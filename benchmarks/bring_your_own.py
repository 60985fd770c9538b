"""What bringing one's own weights costs: seconds and peak memory of import, export and edit, at the published sizes.

The checkpoints are those of the public layouts with random weights, written here: no download, and time and memory do
not depend on what the weights are. Every step is the command a user types, in a process of its own.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from ..engines.errors import EngineError, InputError, StyleclipError
from . import machine, remote
from .report_text import markdown
from .startup import PEAK

ROOT = Path(__file__).resolve().parents[1]
WRITERS = ROOT / "tests" / "training" / "checkpoints"
RESULT = "bring-your-own-cpu.csv"
COMMAND = "python -m styleclip_rt.benchmarks.bring_your_own --size 1024"
NOT_YET = f"Not measured yet: `{COMMAND}`.\n"
SAMPLES = 2000  # of the statistics that the import computes
CLIP = "ViT-B-32"
PROMPT = "a face with glasses"
PATIENCE_S = 3 * 3600

TRIAL_CLIP: dict[str, Any] = {
    "embed_dim": 32, "quick_gelu": True,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}  # fmt: skip

Arguments = list[str]


# The checkpoints ------------------------------------------------------------------------------------------------------


def writers(name: str) -> ModuleType:
    """The tests' writer of public layouts; InputError outside of a checkout, where there are no tests."""
    path = WRITERS / f"{name}.py"
    if not path.is_file():
        raise InputError(f"{path} does not exist: this measurement runs in a checkout of the repository")
    spec = importlib.util.spec_from_file_location(f"_styleclip_rt_{name}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # the file is there, and it is Python
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def write_checkpoints(folder: Path, size: int, trial: bool) -> Arguments:
    """Writes every file that `pack import` takes, and returns its options. `trial`: networks of a few channels."""
    parts = (_generator, _clip, _encoders, _directions)
    return [argument for part in parts for argument in part(folder, size, trial)]


def _generator(folder: Path, size: int, trial: bool) -> Arguments:
    width: dict[str, Any] = {"width": 16, "channels": {4 << k: 8 for k in range(9) if 4 << k <= size}} if trial else {}
    writers("writers").write_rosinality(folder / "generator.pt", size=size, **width)
    return ["--generator", str(folder / "generator.pt"), "--statistics", f"compute:{SAMPLES}"]


def _clip(folder: Path, size: int, trial: bool) -> Arguments:
    import open_clip
    import torch

    from ..runtime.training.networks.clip import build_open_clip

    config = TRIAL_CLIP if trial else open_clip.get_model_config(CLIP)
    torch.manual_seed(0)
    torch.save(build_open_clip(config).state_dict(), folder / "clip.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return ["--clip", str(folder / "clip.pt")]


def _encoders(folder: Path, size: int, trial: bool) -> Arguments:
    import torch

    module = writers("writers_encoders")
    narrow: dict[str, Any] = {"widths": module.NARROW, "reduction": 2} if trial else {}
    styles = 2 * (size.bit_length() - 1) - 2
    torch.save(module.write_encoder(styles=styles, stylegan_size=size, **narrow), folder / "e4e.pt")
    torch.save(module.write_identity(**narrow), folder / "ir_se50.pth")
    return ["--inverter", str(folder / "e4e.pt"), "--identity", str(folder / "ir_se50.pth")]


def _directions(folder: Path, size: int, trial: bool) -> Arguments:
    """Rows of StyleCLIP's own script, which stops at the 128 px layers; it is no more than a table."""
    import numpy as np

    rows, width = (40, TRIAL_CLIP["embed_dim"]) if trial else (5376, 512)
    table = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
    np.save(folder / "fs3.npy", table / np.linalg.norm(table, axis=1, keepdims=True))
    return ["--directions", str(folder / "fs3.npy")]


# The measurement ------------------------------------------------------------------------------------------------------


def steps(folder: Path, files: Arguments) -> dict[str, Arguments]:
    """The commands in the order in which a user types them; the second edit finds its text embedded."""
    pack, bundle, picture = (str(folder / name) for name in ("pack", "bundle", "edit.png"))
    edit = ["edit", "sample", "--bundle", bundle, "--device", "cpu", "--no-align"]  # the sample is an aligned crop
    edit += ["--alpha", "2", "--beta", "0.1", "--out", picture]
    return {
        "pack import": ["pack", "import", *files, "--name", "mine", "--out", pack],
        "export": ["export", "--pack", pack, "--prompt", PROMPT, "--no-kernels", "--out", bundle],
        "edit": edit,
        "edit, again": edit,
    }


def measured(arguments: Arguments, threads: int) -> tuple[float, int]:
    """(seconds, peak MiB) of one command in a fresh process; EngineError with its last line where it fails."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        env=remote.environment(threads),
    )
    seconds = time.perf_counter() - begin
    peak = re.search(r"^peak_rss_mib=(\d+)$", done.stderr, re.MULTILINE)
    if done.returncode or peak is None:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith("peak_rss_mib")]
        raise EngineError(f"{' '.join(arguments[:2])} failed: {lines[-1][:400] if lines else done.returncode}")
    return seconds, int(peak[1])


def measure(size: int, threads: int, trial: bool, work: Path, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each step. `work`: an empty folder, filled with some gigabytes at full size."""
    place = machine.environment("cpu", threads)
    about = {"size": size, "threads": threads, "cpu": place["cpu"], "cores": place["cores"]}
    about |= {"memory_mib": place["memory_mib"], "date": place["date"][:10]}
    about |= {name: place["packages"].get(name, "") for name in ("torch", "openvino")}
    about["onnxruntime"] = next((v for k, v in place["packages"].items() if k.startswith("onnxruntime")), "")
    progress("writing checkpoints")
    files = write_checkpoints(work, size, trial)
    rows = []
    for name, arguments in steps(work, files).items():
        progress(name)
        seconds, peak = measured(arguments, threads)
        rows.append({"step": name, "seconds": round(seconds, 1), "peak_rss_mib": peak, **about})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The CSV; one that is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def table(results: Path) -> str:
    """The table of docs/import.md, under a line that says where it was measured."""
    path = results / RESULT
    if not path.is_file():
        return NOT_YET
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    versions = ", ".join(f"{name} {first[name]}" for name in ("torch", "onnxruntime", "openvino") if first[name])
    head = (
        f"{first['cpu']}, {first['cores']} cores, {int(first['memory_mib']) / 1024:.0f} GiB; {first['size']} px; "
        f"{versions}; {first['date']}."
    )
    body = [
        [f"`{row['step']}`", f"{float(row['seconds']):.0f}", f"{int(row['peak_rss_mib']) / 1024:.1f}"] for row in rows
    ]
    return f"{head}\n\n{markdown(('step', 'seconds', 'peak memory (GiB)'), body)}"


@click.command()
@click.option("--size", type=click.Choice([str(4 << k) for k in range(2, 9)]), default="1024", show_default=True,
              metavar="PIXELS", help="Of the generator's pictures.")  # fmt: skip
@click.option("--trial", is_flag=True, help="Networks of a few channels, to see that this command works.")
@click.option("--threads", type=click.IntRange(1), default=None, metavar="COUNT", help="Default: the physical cores.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks" / "results", metavar="DIR",
              help="Folder of the CSV. Default: benchmarks/results of the checkout.")  # fmt: skip
def main(size: str, trial: bool, threads: int | None, out: Path) -> None:
    """Import, export and edit at full size, with the time and the memory of each; needs 8 GB of disk for a while.

    \b
    Examples:
      python -m styleclip_rt.benchmarks.bring_your_own --size 1024
      python -m styleclip_rt.benchmarks.bring_your_own --size 64 --trial --out trial
    """
    count = threads or machine.physical_cores()
    try:
        with tempfile.TemporaryDirectory(prefix="styleclip-rt-own-") as folder:
            rows = measure(int(size), count, trial, Path(folder), lambda text: click.echo(text, err=True))
    except StyleclipError as error:
        raise click.ClickException(str(error)) from None
    write_rows(out / RESULT, rows)
    click.echo(table(out))


if __name__ == "__main__":
    main()

"""`styleclip-rt evaluate`, the command: the files that it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the evaluation needs the extra `torch`")

from click.testing import CliRunner  # noqa: E402

from styleclip_rt.benchmarks import evaluate_methods  # noqa: E402
from styleclip_rt.engines.errors import StyleclipError  # noqa: E402
from styleclip_rt.export.prompts import make_plan as export_plan  # noqa: E402
from styleclip_rt.runtime import store  # noqa: E402
from styleclip_rt.runtime.cli import cli  # noqa: E402
from styleclip_rt.runtime.training import search  # noqa: E402
from styleclip_rt.runtime.training.pack import Pack, PackWriter, load_pack  # noqa: E402


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack("toyfaces")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["evaluate", *arguments])
    return result.exit_code, result.output


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_tables_sheet_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs the extra `bench`")
    chosen = ("--prompt", "glasses", "--prompt", "red hair", "--faces", "4", "--methods", "global,mapper")
    code, output = run(*chosen, "--out", str(tmp_path), "--json", "--times", "none")
    assert code == 0, output
    record = json.loads(output[output.index("{") :])
    assert {(row["prompt"], row["method"], row["scored_by"]) for row in record["rows"]} == {
        ("glasses", "global", "judge"),
        ("glasses", "mapper", "judge"),
        ("red-hair", "global", "CLIP"),
    }
    assert record["faces"] == {"count": 4, "files": [], "seeds": [0, 3]}
    rows = rows_of(tmp_path / "evaluate-toyfaces.csv")
    assert [float(row["success"]) for row in rows] == [row["success"] for row in record["rows"]]
    assert {row["prompt"] for row in rows_of(tmp_path / "evaluate-toyfaces-mappers.csv")} == set(
        load_pack("toyfaces").mappers
    )
    assert rows_of(tmp_path / "evaluate-toyfaces-tradeoff.csv")
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json", ".jpg", ".png"}
    assert all(Path(path).stat().st_size > 100 for path in record["files"].values())


def test_latents_and_photos_take_the_place_of_random_faces(tmp_path: Path, root: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes((root / "runtime" / "data" / "portrait.png").read_bytes())
    (photos / "notes.txt").write_text("no photo")
    arguments = ("--photos", str(photos), "--prompt", "hat", "--methods", "global", "--no-curves", "--times", "none")
    code, output = run(*arguments, "--out", str(tmp_path / "out"), "--json")
    assert code == 0, output
    record = json.loads(output[output.index("{") :])
    assert record["faces"]["count"] == 1
    assert record["faces"]["files"] == [str(photos / "a.png")]


def test_recommend_writes_a_pack_that_edit_takes_its_settings_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    """First with a full disk at the end of the search; the second run writes what the first one chose."""
    monkeypatch.setattr(search, "ALPHAS", (3.0,))
    monkeypatch.setattr(search, "BETAS", (0.12,))
    mine = tmp_path / "packs" / "mine"
    shutil.copytree(load_pack("toyfaces").path, mine)
    arguments = ["--prompt", "red hair", "--methods", "global", "--faces", "4", "--selection-faces", "8", "--recommend"]
    arguments += ["--pack", str(mine), "--out", str(tmp_path), "--no-curves", "--times", "none"]
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with full_disk():
        code, output = run(*arguments)
    kept = mine.with_name("mine-work") / "recommended.safetensors"
    assert code == StyleclipError.exit_code
    said = f"error: cannot write the pack {mine}: No space left on device; the finished work is kept in {kept}."
    assert said in output
    assert "Traceback" not in output
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert "red-hair" not in load_pack(mine).prompts

    with monkeypatch.context() as patch:
        patch.setattr(search, "choose", lambda *_, **__: pytest.fail("searched again"))
        code, output = run(*arguments)
    assert code == 0, output
    assert not kept.parent.exists()
    entry = load_pack(mine).prompts["red-hair"]
    assert entry["target"] == "red hair"
    assert entry["beta"] == 0.12
    assert entry["alpha"] in (2.55, 3.0, 3.45)
    rows = rows_of(tmp_path / "evaluate-toyfaces.csv")
    assert float(rows[0]["alpha"]) == entry["alpha"]
    assert str(mine) in output
    assert edited(mine, "red-hair", tmp_path) == {"target": "red hair", "neutral": entry["neutral"], "beta": 0.12,
                                                  "alpha": entry["alpha"],
                                                  "resolutions": entry["resolutions"]}  # fmt: skip


def edited(pack: Path, prompt: str, folder: Path) -> dict[str, object]:
    """What `edit --prompt` says it did, with what an export of the pack writes about its prompts.

    The graphs are those of the shipped bundle: settings of prompts change none of them.
    """
    bundle = folder / "bundle"
    shutil.copytree(store.DATA / "toyfaces-bundle", bundle)
    manifest = json.loads((bundle / store.MANIFEST).read_text("utf-8"))
    manifest["prompts"] = export_plan(load_pack(pack), [prompt]).prompts
    (bundle / store.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    out = folder / "edited.png"
    command = ["edit", "sample", "--prompt", prompt, "--bundle", str(bundle), "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(cli, [*command, "--json"])
    assert result.exit_code == 0, result.output
    (did,) = json.loads(result.stdout)["prompts"]
    assert (did.pop("kind"), did.pop("name")) == ("prompt", prompt)
    assert out.stat().st_size > 1000
    return dict(did)


def test_a_shipped_pack_is_not_changed_and_nothing_is_measured_for_it(tmp_path: Path) -> None:
    code, output = run("--recommend", "--out", str(tmp_path / "out"))
    assert code != 0
    assert "ships with the package" in output
    assert not (tmp_path / "out").exists()


def test_dry_run_says_what_would_be_compared(tmp_path: Path) -> None:
    code, output = run("--prompt", "hat", "--faces", "5", "--out", str(tmp_path / "out"), "--dry-run")
    assert code == 0, output
    assert "prompts: hat" in output
    assert "5 random ones" in output
    assert not (tmp_path / "out").exists()


def test_neutrals_without_a_search_and_a_folder_without_photos_are_errors(tmp_path: Path) -> None:
    assert run("--neutral", "x", "--out", str(tmp_path))[0] == 2
    code, output = run("--photos", str(tmp_path), "--out", str(tmp_path / "out"))
    assert code != 0
    assert "holds no photo" in output


def test_a_pack_without_judge_and_prompts_is_judged_by_its_clip(pack: Pack, tmp_path: Path) -> None:
    with PackWriter(tmp_path / "bare", "bare", base=pack.path) as writer:
        writer.prompts = {}
        for name in ("judge", "identity", "directions"):
            del writer.components[name]
    bare = ("--pack", str(tmp_path / "bare"), "--out", str(tmp_path / "out"))
    code, output = run(*bare)
    assert code != 0
    assert "names no prompts" in output
    more = ("--prompt", "glasses", "--methods", "global,mapper", "--faces", "4", "--no-curves", "--times", "none")
    code, output = run(*bare, *more)
    assert code == 0, output
    rows = rows_of(tmp_path / "out" / "evaluate-bare.csv")
    assert [(row["method"], row["scored_by"], row["identity_cosine"]) for row in rows] == [("mapper", "CLIP", "")]
    assert "has no 'directions'" in output


def test_optimisation_stands_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = evaluate_methods.settings_for
    monkeypatch.setattr(evaluate_methods, "settings_for", lambda pack, preset=None: full(pack, preset, steps=30))
    arguments = ("--prompt", "glasses", "--faces", "3", "--no-curves", "--out", str(tmp_path), "--times", "none")
    code, output = run(*arguments)
    assert code == 0, output
    rows = {row["method"]: row for row in rows_of(tmp_path / "evaluate-toyfaces.csv")}
    assert list(rows) == ["global", "mapper", "optimize"]
    assert len({row["faces"] for row in rows.values()}) == 1  # the same faces
    found = rows["optimize"]
    assert (found["alpha"], found["beta"], found["steps"]) == ("", "", "30")
    assert float(found["delta_w"]) > 0
    assert float(found["clip_gain"]) > 0.05


def test_what_named_directions_and_presets_cannot_be(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"), "--dry-run")
    assert "expected" not in run("--preset", "published", *out)[1]
    for arguments, message in (
        (("--direction", "nose"), "no direction 'nose'"),
        (("--alpha", "2"), "give --direction NAME with it"),
        (("--preset", "quick"), "no preset 'quick'"),
    ):
        code, output = run(*arguments, *out)
        assert code != 0
        assert message in output

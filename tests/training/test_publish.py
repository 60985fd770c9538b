"""A disk that is full at the very end of a training: one line, the old pack, and nothing that has to be done twice.

`train mapper` is in test_mapper_run.py and `evaluate --recommend` in test_evaluate_command.py of the benchmarks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="CLIP needs the extra 'torch'")

from click.testing import CliRunner, Result  # noqa: E402

from styleclip_rt.engines.errors import StyleclipError  # noqa: E402
from styleclip_rt.runtime.cli import cli  # noqa: E402
from styleclip_rt.runtime.training import gradient_run, kept, neighbours_run  # noqa: E402
from styleclip_rt.runtime.training.kept import Kept  # noqa: E402
from styleclip_rt.runtime.training.networks.clip import Clip  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402
from styleclip_rt.runtime.training.pack_writer import Component  # noqa: E402

FullDisk = Callable[[], AbstractContextManager[None]]
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A generator of 16 px and a CLIP of 8 px, alone in a folder."""
    torch.manual_seed(0)
    folder = tmp_path / "packs" / "mini"
    with PackWriter(folder, "mini") as writer:
        writer.add("generator", Generator(GeneratorConfig(16, 8, 8, 1, {4: 6, 8: 5, 16: 4})))
        writer.add("clip", Clip(CLIP))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def train(full_disk: FullDisk | None, pack: Path, what: str, *options: object) -> Result:
    command = ["train", what, "--pack", str(pack), "--out", str(pack), "--json", *map(str, options)]
    if full_disk is None:
        return CliRunner().invoke(cli, command)
    with full_disk():
        return CliRunner().invoke(cli, command)


def check_refusal(result: Result, pack: Path, before: dict[str, bytes], file: Path) -> None:
    """One line that names the pack, the reason and the file; the pack is as it was and nothing else lies beside it."""
    assert result.exit_code == StyleclipError.exit_code, result.output
    line = result.stderr.splitlines()[-1]
    assert line == (
        f"error: cannot write the pack {pack}: No space left on device; the finished work is kept in {file}. "
        "Mend that and run the same command again"
    )
    assert "Traceback" not in result.output
    assert file.is_file()
    assert contents(pack) == before
    assert {path.name for path in pack.parent.iterdir()} == {pack.name, f"{pack.name}-work"}


def record_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_table_by_finite_differences_is_not_measured_twice(pack: Path, full_disk: FullDisk) -> None:
    before, work = contents(pack), pack.with_name("mini-work")
    options = ("directions", "--images", "3", "--samples", "300")
    check_refusal(train(full_disk, pack, *options), pack, before, work / "directions.pt")
    state = torch.load(work / "directions.pt", weights_only=True)
    record = record_of(train(None, pack, *options))
    assert state["block"] == record_of(train(None, pack, *options, "--dry-run"))["blocks"], "it was all there"
    again = torch.load(work / "directions.pt", weights_only=True)
    assert torch.equal(state["total"], again["total"])
    assert torch.equal(state["seen"], again["seen"])
    assert record["moving"] == int(load_pack(pack).directions.any(1).sum()) > 0


@pytest.mark.parametrize("prompt", [None, "glasses"], ids=["table", "prompt"])
def test_gradients_are_not_taken_twice(
    pack: Path, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch, prompt: str | None
) -> None:
    options: tuple[str, ...] = ("directions", "--method", "gradient", "--images", "2")
    if prompt is not None:
        options += ("--prompt", prompt)
        shutil.rmtree(pack)
        shutil.copytree(load_pack("toyfaces").path, pack)
    before, file = contents(pack), pack.with_name("mini-work") / f"gradient-{prompt or 'directions'}.safetensors"
    check_refusal(train(full_disk, pack, *options), pack, before, file)
    with monkeypatch.context() as patch:
        for name in ("gradient_table", "gradient_relevance"):
            patch.setattr(gradient_run, name, lambda *_, **__: pytest.fail("computed again"))
        record = record_of(train(None, pack, *options))
    made = load_pack(pack)
    assert record["component"] in made.components
    assert not file.parent.exists(), "published, so no longer kept"
    # what was kept is what a run without a break publishes
    fresh = pack.with_name("fresh")
    shutil.copytree(pack, fresh)
    for name, data in before.items():
        (fresh / name).write_bytes(data)
    record_of(train(None, fresh, *options))
    expected = load_pack(fresh).tensors(record["component"])
    for name, tensor in made.tensors(record["component"]).items():
        assert torch.equal(tensor, expected[name])
    assert made.config(record["component"]) == load_pack(fresh).config(record["component"])


def test_neighbours_are_not_found_twice(pack: Path, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    before, work = contents(pack), pack.with_name("mini-work")
    options = ("neighbours", "--method", "ganspace", "--components", "2", "--samples", "200", "--faces", "1")
    check_refusal(train(full_disk, pack, *options), pack, before, work / "ganspace.safetensors")
    other = record_of(train(None, pack, *options, "--seed", "1", "--out", pack.with_name("other"), "--work", work))
    assert (work / "ganspace.safetensors").exists(), "of another run, which is not this one's to take"
    with monkeypatch.context() as patch:
        patch.setattr(neighbours_run, "_find", lambda plan: pytest.fail("found again"))
        record = record_of(train(None, pack, *options))
    assert load_pack(pack).directions_named == tuple(record["directions"]) == ("ganspace-0", "ganspace-1")
    assert other["directions"] != record["directions"]
    assert [path.name for path in work.iterdir()] == ["ganspace.png"]


def test_an_inverter_is_not_trained_twice(tiny: Any, tmp_path: Path, full_disk: FullDisk) -> None:
    pack = tmp_path / "packs" / "mini"
    shutil.copytree(tiny.path, pack)
    before, file = contents(pack), pack.with_name("mini-work") / "inverter.safetensors"
    options = ("inverter", "--warm-steps", "2", "--steps", "2", "--batch", "2", "--tests", "2")
    check_refusal(train(full_disk, pack, *options), pack, before, file)
    trained = file.stat().st_mtime_ns
    record_of(train(None, pack, *options))
    assert file.stat().st_mtime_ns == trained
    assert load_pack(pack).has("inverter")


def test_where_nothing_can_be_kept_the_line_says_so(
    pack: Path, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, save: object) -> None:
        raise StyleclipError(f"cannot write {file}: No space left on device")

    monkeypatch.setattr(kept, "write_durably", full)
    result = train(full_disk, pack, "neighbours", "--method", "ganspace", "--samples", 200, "--faces", 1)
    assert result.exit_code == StyleclipError.exit_code
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"error: cannot write the pack {pack}: No space left on device; nor can the finished work")
    assert line.endswith("ganspace.safetensors: No space left on device")


def test_what_is_kept_comes_back_as_it_was_and_only_to_its_own_run(tmp_path: Path) -> None:
    rows = torch.randn(5, 3)
    parts = {
        "direction/a": Component({"delta_s": rows[:, 0], "relevance": rows[:, 1]}, {"method": "x"}, "MIT", "s", True),
        "directions": Component({"delta_i_c": rows}, {"images": 3}),
    }
    mine = Kept(tmp_path / "work" / "it.safetensors", {"seed": 1, "alpha": 0.1, "names": ("a", "b")})
    assert mine.load() is None
    mine.save(parts, {"reasons": {}})
    found = mine.load()
    assert found is not None
    components, record = found
    assert record == {"reasons": {}}
    assert list(components) == list(parts)
    for name, part in parts.items():
        came = components[name]
        for field in ("config", "licence", "source", "exact"):
            assert getattr(came, field) == getattr(part, field)
        assert came.content.keys() == part.content.keys()
        assert all(torch.equal(came.content[key], part.content[key]) for key in part.content)
    other = Kept(mine.file, {**mine.stamp, "seed": 2})
    assert other.load() is None
    other.drop()
    whole = mine.file.read_bytes()
    mine.file.write_bytes(whole[:-8])
    assert mine.load() is None, "damaged"
    mine.file.write_bytes(whole)
    mine.drop()
    mine.drop()
    assert not mine.file.parent.exists()

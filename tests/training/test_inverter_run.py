"""`train inverter` from end to end: photos, plan, command line, the pack that it leaves and the export of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.align import read_alignment
from styleclip_rt.runtime.align_frame import Framing
from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.images import pm1_from_image
from styleclip_rt.runtime.training.inverter_photos import photo_files, read_photos
from styleclip_rt.runtime.training.inverter_run import InverterRequest, InverterRun, make_plan
from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig
from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.pack import PackWriter, load_pack

from .conftest import Kill

CONFIG = GeneratorConfig(resolution=16, z_dim=12, w_dim=12, mapping_layers=2, channels={4: 8, 8: 8, 16: 6})
FEW = ["--warm-steps", "2", "--steps", "3", "--batch", "4", "--tests", "4", "--threads", "1"]
FRAMING = Framing(16, read_alignment({}, 16))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    with PackWriter(folder, "tiny") as writer:
        writer.add("generator", Generator(CONFIG))
        writer.add("identity", ArcFace(ArcFaceConfig(16, 8, 8, ((8, 1), (8, 1)), 4)))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos of several sizes, one below the folder, one broken picture and one file that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.png", "d.PNG", "more/e.webp"):
        side = (20, 30) if name == "a.png" else (16, 16)
        Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def run(*arguments: str) -> dict:
    result = CliRunner().invoke(cli, ["train", "inverter", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# Photos --------------------------------------------------------------------------------------------------------------


def test_photos_are_framed_and_unreadable_ones_are_named(photos: Path, tmp_path: Path) -> None:
    found = read_photos(photos, FRAMING, tmp_path / "work")
    assert found.names == ("a.png", "b.jpg", "c.png", "d.PNG", "more/e.webp")
    assert list(found.skipped) == ["broken.jpg"]
    assert "damaged" in found.skipped["broken.jpg"] or "not a picture" in found.skipped["broken.jpg"]
    assert found.pixels.shape == (5, 3, 16, 16)
    expected = torch.from_numpy(pm1_from_image(Image.open(photos / "c.png")))
    both = found.batch(np.array([2, 2]), np.array([False, True]))
    assert torch.allclose(both[:1], expected, atol=1e-6)
    assert torch.allclose(both[1:], expected.flip(3), atol=1e-6)


def test_photos_are_read_once_while_the_folder_stays_the_same(photos: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = read_photos(photos, FRAMING, work)
    written = (work / "photos.npy").stat().st_mtime_ns
    again = read_photos(photos, FRAMING, work)
    assert (work / "photos.npy").stat().st_mtime_ns == written
    assert again.digest == first.digest
    assert again.skipped == first.skipped
    assert np.array_equal(again.pixels, first.pixels)
    (photos / "broken.jpg").unlink()
    Image.new("RGB", (16, 16), "red").save(photos / "f.png")
    changed = read_photos(photos, FRAMING, work)
    assert changed.digest != first.digest
    assert "f.png" in changed.names
    assert not changed.skipped
    assert sorted(path.name for path in work.iterdir()) == ["photos.json", "photos.npy"]


def test_a_folder_without_a_usable_photo_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no folder"):
        photo_files(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"holds no photo; expected files with one of the endings \.jpg"):
        photo_files(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"none of the 1 photos of .* can be used; the first: .*a\.png"):
        read_photos(tmp_path, FRAMING, tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


# The command ---------------------------------------------------------------------------------------------------------


def test_a_trained_inverter_goes_into_a_pack_and_through_an_export(pack: Path, photos: Path, tmp_path: Path) -> None:
    import onnxruntime

    from styleclip_rt.export.graphs import GraphFactory
    from styleclip_rt.export.onnx_writer import onnx_from_module

    out, work = tmp_path / "out", tmp_path / "work"
    given = ["--pack", str(pack), "--out", str(out), "--work", str(work), "--photos", str(photos), *FEW]
    record = run(*given, "--validate-every", "2")
    assert list(record["skipped"]) == ["broken.jpg"]
    assert record["scores"]["samples"]["pictures"] == 4
    assert record["scores"]["photos"]["pictures"] == 1
    assert record["before"] == {}
    assert record["notes"] == ["the pack has no 'clip': the loss 'clip' is left out"]
    assert Path(record["sheet"]).is_file()
    assert [json.loads(line)["step"] for line in (work / "inverter" / "scores.jsonl").read_text().splitlines()] == [
        2,
        3,
    ]
    trained = load_pack(out)
    assert trained.config("inverter")["training"]["photos"] == 5
    assert trained.config("inverter")["training"]["test"] == record["scores"]
    assert trained.entry("inverter")["licence"] == "trained here"
    assert load_pack(pack).components == ("generator", "identity")

    graph = GraphFactory(trained).invert()
    session = onnxruntime.InferenceSession(onnx_from_module(graph).SerializeToString())
    image = pm1_from_image(Image.open(photos / "c.png").convert("RGB"))
    (found,) = session.run(None, {session.get_inputs()[0].name: image})
    with torch.no_grad():
        assert np.allclose(found, trained.inverter(torch.from_numpy(image)).numpy(), atol=1e-4)

    again = run(*given, "--validate-every", "2")
    assert again["scores"] == record["scores"]  # finished: read back, not trained anew


@pytest.mark.slow
def test_sigkill_in_either_pass_costs_only_the_steps_since_the_checkpoint(
    pack: Path, tmp_path: Path, killed: Callable[..., None], check_same: Callable[..., None], one_thread: None
) -> None:
    """A checkpoint after every step; killed while the second one is written, then in the pass after the warm-up."""
    given = ["--pack", str(pack), "--warm-steps", "4", "--steps", "6", "--batch", "4", "--tests", "2", "--threads", "1"]
    given += ["--save-every", "1"]
    work = {name: tmp_path / f"{name}-work" for name in ("mine", "whole")}
    mine = [*given, "--out", str(tmp_path / "mine")]
    killed(Kill("before", 2), "train", "inverter", *mine)
    assert [path.name for path in work["mine"].glob("*.safetensors")] == ["inverter-w.safetensors"]
    killed(Kill("after", 6, random.Random(3).uniform(0.0, 0.02)), "train", "inverter", *mine)
    assert (work["mine"] / "inverter.safetensors").is_file()
    assert not (tmp_path / "mine").exists()
    record, whole = run(*mine), run(*given, "--out", str(tmp_path / "whole"))
    for name in ("inverter-w.safetensors", "inverter.safetensors"):
        check_same(work["mine"] / name, work["whole"] / name)
    assert record["scores"] == whole["scores"]


def test_a_training_can_go_on_from_the_packs_inverter(pack: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    torch.manual_seed(1)
    encoder = Encoder4Editing(E4EConfig(6, 12, 16, 8, ((12, 1), (16, 1), (16, 1)), 4, 12, 2, 4))
    with PackWriter(own, "own", base=pack) as writer:
        writer.add("inverter", encoder)
    plan = make_plan(load_pack(own), InverterRequest(go_on=True, changes={"steps": 2, "batch": 2}, tests=2))
    assert plan.settings.warm_steps == 0
    assert plan.settings.unlock == (0.0, 0.0)
    assert plan.out == own
    weight = load_pack(own).inverter.heads[0].linear.weight
    assert torch.equal(InverterRun(plan).networks.encoder.heads[0].linear.weight, weight)
    result = InverterRun(plan).run()
    assert result.before["samples"].pictures == 2
    assert result.pack == own
    assert not torch.equal(load_pack(own).inverter.heads[0].linear.weight, weight)
    assert load_pack(own).components == ("generator", "identity", "inverter")


def test_only_an_encoder_of_this_kind_goes_on(pack: Path, tmp_path: Path) -> None:
    config = E4EConfig(6, 12, 16, 8, ((12, 1), (16, 1), (16, 1)), 4, 12, 2, 4, kind="psp")
    with PackWriter(tmp_path / "psp", "psp", base=pack) as writer:
        writer.add("inverter", Encoder4Editing(config))
    with pytest.raises(InputError, match=r"is psp for w\+ \[6, 12\].*Leave out --continue"):
        make_plan(load_pack(tmp_path / "psp"), InverterRequest(go_on=True))


def test_a_dry_run_tells_the_plan_and_writes_nothing(pack: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run(
        "--pack", str(pack), "--out", str(out), "--photos", str(photos), "--lambda-known-w", "0.5", "--dry-run"
    )
    assert record["photos"] == 6
    assert record["settings"]["weights"]["known_w"] == 0.5
    assert record["input_size"] == 16
    assert not out.exists()
    assert not Path(record["work"]).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ships with the package and is not changed"),
        (["--photos", "."], "holds no photo"),
        (["--photos", "nowhere"], "is no folder"),
        (["--preset", "narrow", "--pack", "nowhere"], "no pack at 'nowhere'"),
        (["--photos", ".", "--no-align", "--landmark-model", "x.dat"], "leave out --landmark-model"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extra = ["--out", "out"] if arguments else []
    result = CliRunner().invoke(cli, ["train", "inverter", *arguments, *extra])
    assert result.exit_code in (2, 3)
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_faces_that_have_to_be_aligned_need_something_that_finds_them(
    pack: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STYLECLIP_RT_LANDMARKS", raising=False)
    with PackWriter(tmp_path / "ffhq", "ffhq", base=pack) as writer:
        writer.alignment = {"kind": "ffhq"}
    aligned = load_pack(tmp_path / "ffhq")
    with pytest.raises(InputError, match="expects FFHQ-aligned faces"):
        make_plan(aligned, InverterRequest(photos=photos))
    assert make_plan(aligned, InverterRequest(photos=photos, align=False)).framing is not None


def test_a_pack_that_would_lose_components_is_not_replaced(pack: Path, tmp_path: Path) -> None:
    with PackWriter(tmp_path / "full", "full", base=pack) as writer:
        writer.add("statistics", {"s_std": torch.ones(3)})
    with pytest.raises(InputError, match="statistics, which would be lost"):
        make_plan(load_pack(pack), InverterRequest(out=tmp_path / "full"))


def test_several_processes_are_refused(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        make_plan(load_pack(pack), InverterRequest(out=tmp_path / "out"))

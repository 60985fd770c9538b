"""`train mapper` as a whole: plans, a killed run, two processes, and the way into a pack, a bundle and an edit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, PackError, StyleclipError  # noqa: E402
from styleclip_rt.runtime.cli import cli  # noqa: E402
from styleclip_rt.runtime.training import mapper_report  # noqa: E402
from styleclip_rt.runtime.training.mapper_run import MapperRequest, make_plan, settle_prompt  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402
from styleclip_rt.runtime.training.publish import destination  # noqa: E402

from .conftest import Kill  # noqa: E402

TINY = ["--steps", "2", "--batch", "2", "--tests", "2", "--validate-every", "50"]


def call(*arguments: object):
    return CliRunner().invoke(cli, ["train", "mapper", *map(str, arguments)])


@pytest.fixture(scope="module")
def toyfaces():
    return load_pack("toyfaces")


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """A pack with a generator alone."""
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

    folder = tmp_path_factory.mktemp("packs") / "part"
    with PackWriter(folder, "part") as writer:
        writer.add("generator", Generator(GeneratorConfig(16, 12, 12, 2, {4: 8, 8: 8, 16: 6})).eval())
    return load_pack(folder)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("bob-cut", None, None), ("bob-cut", "a face with a bob-cut", "the pack's")),
        (("Bob cut", "a face", "mine"), ("mine", "a face with a bob-cut", "a face")),
        (("taylor swift", None, None), ("taylor_swift", "the face of Taylor Swift", "a face")),
        (("A face with green hair", None, None), ("a-face-with-green-hair", "A face with green hair", None)),
    ],
    ids=["pack", "renamed", "published", "free"],
)
def test_prompts_are_those_of_the_pack_the_published_and_any_text(toyfaces, given, expected):
    found = settle_prompt(toyfaces, *given)
    assert found[:2] == expected[:2]
    neutral = toyfaces.prompts["bob-cut"]["neutral"] if expected[2] == "the pack's" else expected[2]
    assert found[2] == neutral or (neutral is None and found[2])


def test_names_that_a_pack_cannot_hold(toyfaces):
    with pytest.raises(InputError, match="give --name"):
        settle_prompt(toyfaces, "ein schönes Gesicht", None, None)
    with pytest.raises(InputError, match="prompt is empty"):
        settle_prompt(toyfaces, " ", None, None)


def test_the_shipped_pack_is_not_changed(toyfaces):
    with pytest.raises(InputError, match="name a new pack with --out"):
        make_plan(toyfaces, MapperRequest("bob-cut"))


def test_a_pack_without_clip_is_refused_and_one_without_identity_is_told(part, tmp_path):
    with pytest.raises(PackError, match="has no 'clip'"):
        make_plan(part, MapperRequest("bob-cut"))
    with PackWriter(tmp_path / "less", "less", base=load_pack("toyfaces").path) as writer:
        del writer.components["identity"]
    plan = make_plan(load_pack(tmp_path / "less"), MapperRequest("bob-cut"))
    assert plan.settings.weights.identity == 0
    assert "no identity network" in plan.notes[0]
    assert plan.out == tmp_path / "less"
    assert plan.work == tmp_path / "less-work"


def test_a_pack_that_would_lose_something_is_not_overwritten(toyfaces, tmp_path):
    with PackWriter(tmp_path / "other", "other", base=toyfaces.path) as writer:
        writer.add("mapper/mine", toyfaces.mapper("bob-cut"))
    with pytest.raises(InputError, match=r"mapper/mine, which would be lost; to add to it give --pack"):
        destination(toyfaces, tmp_path / "other", ["mapper/bob-cut"])
    destination(toyfaces, tmp_path / "other", ["mapper/mine"])
    destination(load_pack(tmp_path / "other"), tmp_path / "other", ["mapper/bob-cut"])


def test_a_dry_run_says_everything_and_writes_nothing(tmp_path):
    out = tmp_path / "mine"
    options = ["--groups", "coarse, medium", "--lambda-l2", "0.7", "--preset", "published", "--steps", "9"]
    result = call("--prompt", "mohawk", "--out", out, "--json", "--dry-run", *options)
    plan = json.loads(result.stdout)
    assert (plan["component"], plan["work"]) == ("mapper/mohawk", str(tmp_path / "mine-work"))
    settings = plan["settings"]
    assert (settings["optimizer"], settings["steps"], settings["groups"]) == ("ranger", 9, ["coarse", "medium"])
    assert settings["weights"] == {"clip": 1.0, "directional": 0.0, "l2": 0.7, "identity": 0.1}
    assert not list(tmp_path.iterdir())
    text = call("--prompt", "mohawk", "--out", out, "--dry-run").stdout
    assert "optimizer        adam" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groups", "top"], "expected one or more of coarse, medium, fine"),
        (["--name", "A B"], "cannot name a mapper"),
        (["--latents", "none.npy"], "none.npy"),
        (["--photos", "nowhere"], "is no folder"),
    ],
    ids=["groups", "name", "latents", "photos"],
)
def test_errors_are_one_line_before_the_training(tmp_path, options, message):
    result = call("--prompt", "bob-cut", "--out", tmp_path / "mine", *TINY, "--no-tensorboard", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_style_mapper_goes_into_a_pack(toyfaces, tmp_path, monkeypatch, full_disk):
    """Without TensorBoard, with a full disk at the very end, and then to the end without training again."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "mine"
    command = ["--prompt", "a face with green hair", "--kind", "style", "--torgb", "--out", out, "--name", "green"]

    with full_disk():
        result = call(*command, *TINY)
    assert result.exit_code == StyleclipError.exit_code
    checkpoint = tmp_path / "mine-work" / "mapper-green.safetensors"
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"error: cannot write the pack {out}: No space left on device; the finished work is kept")
    assert f"kept in {checkpoint}." in error
    assert not out.exists()

    trained = checkpoint.stat().st_mtime_ns
    result = call(*command, *TINY, "--json")
    assert checkpoint.stat().st_mtime_ns == trained
    record = json.loads(result.stdout)
    assert record["clip_gain"] == pytest.approx(record["clip_after"] - record["clip_before"], abs=2e-5)
    assert 0.5 < record["identity"] <= 1
    assert record["drift"] > 0
    assert Path(record["sheet"]).read_bytes().startswith(b"\x89PNG")
    assert [json.loads(line)["step"] for line in Path(record["log"]).read_text().splitlines()] == [0]
    pack = load_pack(out)
    pack.verify()
    assert set(pack.components) == {*toyfaces.components, "mapper/green"}
    entry = pack.entry("mapper/green")
    assert entry["licence"] == "trained here"
    assert f"generator ({toyfaces.licences['generator']})" in entry["source"]
    assert entry["config"]["description"] == "a face with green hair"
    assert entry["config"]["training"]["settings"]["kind"] == "style"
    assert pack.prompts["green"]["mapper"] == "mapper/green"
    s = pack.generator.styles(pack.generator.broadcast(pack.generator.mapping(torch.randn(2, 128))))
    assert pack.mapper("green").delta(s).shape == s.shape

    again = call(*command[:-1], "other", *TINY, "--pack", out)  # --out is --pack: added to, not replaced
    assert again.exit_code == 0, again.stderr
    assert {"mapper/green", "mapper/other"} <= set(load_pack(out).components)


def read_board(folder: Path):
    """What TensorBoard itself shows of the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def steps_of(events) -> list[int]:
    return [event.step for event in events]


def test_the_board_shows_losses_scores_and_faces_each_step_once_after_a_resume(tmp_path, monkeypatch):
    """22 steps, interrupted after the 21st: the last checkpoint is that of 20, so the row of step 20 is there twice."""
    pytest.importorskip("tensorboard", reason="TensorBoard comes with the extra `train`")
    out, folder = tmp_path / "mine", tmp_path / "mine-work" / "mapper-glasses" / "tensorboard"
    command = ["--prompt", "glasses", "--out", out, "--steps", 22, "--batch", 1, "--tests", 2, "--save-every", 5]
    command += ["--validate-every", 6, "--json"]
    genuine = mapper_report.Watcher.__call__

    def interrupted(self, done, mapper, row):
        genuine(self, done, mapper, row)
        if done == 21:
            self.board.flush()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mapper_report.Watcher, "__call__", interrupted)
        assert call(*command).exit_code == 130
    assert steps_of(read_board(folder).Scalars("loss/loss")) == [0, 10, 20]

    result = call(*command)
    assert result.exit_code == 0, result.stderr
    record, board = json.loads(result.stdout), read_board(folder)
    assert len(list(folder.glob("events.out.tfevents*"))) == 2
    log = [json.loads(line) for line in Path(record["log"]).read_text().splitlines()]
    losses = set(log[0]) - {"step", "seconds"}
    assert losses >= {"loss", "clip"}
    scores = {"clip_before", "clip_after", "clip_gain", "identity", "drift"}
    assert set(board.Tags()["scalars"]) == {f"loss/{name}" for name in losses} | {f"test/{name}" for name in scores}
    for name in losses:
        events = board.Scalars(f"loss/{name}")
        assert steps_of(events) == [0, 10, 20]
        assert [event.value for event in events] == pytest.approx([row[name] for row in log])
    for name in scores:
        events = board.Scalars(f"test/{name}")
        assert steps_of(events) == [6, 12, 18, 22]
        assert events[-1].value == pytest.approx(record[name], abs=2e-5)
    assert board.Tags()["images"]
    for tag in board.Tags()["images"]:
        faces = board.Images(tag)
        assert tag.startswith("faces")
        assert steps_of(faces) == [6, 12, 18, 22]
        assert (faces[-1].width, faces[-1].height) == (4 * 64, 64), "two faces before and after, side by side"


# Real processes ------------------------------------------------------------------------------------------------------

TRAIN = ["train", "mapper", "--prompt", "glasses", "--steps", "12", "--batch", "4", "--tests", "2", "--seed", "3"]
TRAIN += ["--validate-every", "50", "--save-every", "2", "--threads", "1", "--no-tensorboard", "--json"]


def started(out: Path, *launcher: str) -> subprocess.Popen[str]:
    command = [sys.executable, *(launcher or ("-m",)), "styleclip_rt", *TRAIN, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(process: subprocess.Popen[str]) -> dict:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return json.loads(output)


def weights(folder: Path):
    from safetensors.torch import load_file

    return load_file(folder / "mapper-glasses.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a break, and its record."""
    out = tmp_path_factory.mktemp("whole") / "mine"
    return out, finished(started(out))


def checkpoint(out: Path) -> Path:
    return out.with_name(f"{out.name}-work") / "mapper-glasses.safetensors"


@pytest.mark.slow
def test_sigkill_at_any_moment_costs_only_the_steps_since_the_checkpoint(whole, tmp_path, killed, check_same):
    """Three kills in one training of 12 steps, a checkpoint every second one: between, in the middle of, and after."""
    out, moments = tmp_path / "mine", random.Random(5)
    killed(Kill("after", moments.randint(1, 2), moments.uniform(0.02, 0.15)), *TRAIN, "--out", out)
    first = checkpoint(out).read_bytes()
    killed(Kill("before", moments.randint(1, 2)), *TRAIN, "--out", out)
    left = list(checkpoint(out).parent.glob(".*.tmp"))
    assert left, "the second one died while a checkpoint was on the way"
    if moments.random() < 0.5:
        left[0].write_bytes(left[0].read_bytes()[:1000])  # and where the disk had not yet seen all of it
    killed(Kill("after", 1), *TRAIN, "--out", out)
    assert checkpoint(out).read_bytes() != first
    assert not out.exists()
    record = finished(started(out))
    check_same(checkpoint(out), checkpoint(whole[0]))
    mine, theirs = weights(out), weights(whole[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    keys = ("clip_before", "clip_after", "identity", "drift")
    assert [record[key] for key in keys] == [whole[1][key] for key in keys]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(whole, tmp_path):
    out = tmp_path / "mine"
    record = finished(started(out, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"))
    assert sorted(path.name for path in (tmp_path / "mine-work").iterdir() if path.is_file()) == [
        "mapper-glasses.jsonl",
        "mapper-glasses.safetensors",
    ]
    logs = [Path(r["log"]).read_text().splitlines() for r in (record, whole[1])]
    assert len(logs[0]) == len(logs[1])
    for mine, theirs in zip(*logs, strict=True):
        assert json.loads(mine)["loss"] == pytest.approx(json.loads(theirs)["loss"], rel=1e-4)
    mine, theirs = weights(out), weights(whole[0])
    for name, tensor in theirs.items():  # stored as float16
        difference = (mine[name].float() - tensor.float()).norm() / tensor.float().norm()
        assert difference < 2e-3, name
    assert record["clip_after"] == pytest.approx(whole[1]["clip_after"], abs=1e-3)


@pytest.mark.slow
def test_a_trained_mapper_is_exported_and_edits(whole, tmp_path):
    from styleclip_rt.export.bundle_writer import export_bundle
    from styleclip_rt.export.prompts import make_plan as export_plan
    from styleclip_rt.runtime.editor import Editor

    with PackWriter(tmp_path / "pack", "pack", base=whole[0]) as writer:  # what maps and draws; others export encoders
        for part in ("clip", "tokenizer", "inverter", "identity"):
            del writer.components[part]
    pack = load_pack(tmp_path / "pack")
    plan = replace(export_plan(pack, ["glasses"]), slider=False)
    assert plan.default_prompt == "glasses"
    export_bundle(pack, plan, tmp_path / "bundle")
    with Editor.open(str(tmp_path / "bundle"), device="cpu") as editor:
        w = editor.sample([1])
        image = np.asarray(editor.edit_latents(w, ["glasses"], alpha=[1.0], method="mapper").image, dtype=np.float32)
    with torch.no_grad():
        moved = torch.from_numpy(w) + pack.mapper("glasses").delta(torch.from_numpy(w))
        expected = ((pack.generator(moved) + 1) * 127.5).clamp(0, 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(image - expected).max() <= 1

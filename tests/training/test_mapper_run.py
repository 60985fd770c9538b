"""`train mapper` as a whole: plans, a killed run, two processes, and the way into a pack, a bundle and an edit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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


def test_a_style_mapper_goes_into_a_pack(toyfaces, tmp_path, monkeypatch):
    """Without TensorBoard, with a full disk at the very end, and then to the end without training again."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "mine"
    command = ["--prompt", "a face with green hair", "--kind", "style", "--torgb", "--out", out, "--name", "green"]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("styleclip_rt.runtime.training.mapper_run.publish", full)
        result = call(*command, *TINY)
    assert result.exit_code == StyleclipError.exit_code
    assert "No space left on device; the trained mapper is kept in" in result.stderr
    assert not out.exists()

    result = call(*command, *TINY, "--json")
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


def test_a_board_is_written_where_tensorboard_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard comes with the extra `train`")
    board = mapper_report.open_board(tmp_path / "board", 0)
    board.add_scalar("loss/loss", 1.0, 0)
    board.close()
    assert list((tmp_path / "board").glob("events.out.tfevents*"))


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


@pytest.mark.slow
def test_sigkill_at_any_moment_costs_only_the_steps_since_the_checkpoint(whole, tmp_path):
    out = tmp_path / "mine"
    checkpoint = tmp_path / "mine-work" / "mapper-glasses.safetensors"
    process = started(out)
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    (checkpoint.parent / f".{checkpoint.name}.tmp").write_bytes(b"half a checkpoint")  # as a kill while writing leaves
    record = finished(started(out))
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

    pack = load_pack(whole[0])
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

"""The options about the face and the whole photo, on a bundle in memory."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from styleclip_rt.runtime import cli

from .align_faces import landmarks, noise_photo

FACES = [landmarks((120, 90), eyes=30, mouth=32, turn=20), landmarks((300, 110), eyes=32, mouth=31)]


@pytest.fixture
def run(make_bundle, opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command with an aligned bundle in a folder with group.png, one.json and two.json."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("STYLECLIP_RT_LANDMARKS", raising=False)
    noise_photo(400, 240).save("group.png")
    Path("one.json").write_text(json.dumps(FACES[0].tolist()))
    Path("two.json").write_text(json.dumps([face.tolist() for face in FACES]))
    folder = make_bundle("aligned", alignment={"kind": "ffhq", "output_size": 32})

    def call(*args: object) -> Result:
        return CliRunner().invoke(cli.cli, [*map(str, args), "--bundle", str(folder)], prog_name="styleclip-rt")

    return call


def record(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def outputs() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"group.png", "one.json", "two.json"}


def test_an_aligned_edit_reports_the_face(run):
    out = record(run("edit", "group.png", "--prompt", "glasses", "--landmarks", "one.json", "--json", "--out", "a.png"))
    assert (out["face"], out["faces"], out["paste"], out["size"]) == (1, 1, None, [8, 8])
    assert np.array(out["quad"]).shape == (4, 2)
    assert Image.open("a.png").size == (8, 8)


def test_paste_writes_the_whole_photo(run):
    options = ["--prompt", "glasses", "--alpha", 9, "--landmarks", "two.json", "--face", 2, "--json"]
    changed = record(run("edit", "group.png", *options, "--paste", "--out", "changed.png"))
    crop = record(run("edit", "group.png", *options, "--paste-crop", "--out", "crop.png"))
    assert (changed["paste"], changed["size"], changed["face"]) == ("changed", [400, 240], 2)
    assert crop["paste"] == "crop"
    before = np.asarray(noise_photo(400, 240))
    for name in ("changed.png", "crop.png"):
        out = np.asarray(Image.open(name))
        assert out.shape == before.shape
        np.testing.assert_array_equal(out[:, :200], before[:, :200])
    assert (np.asarray(Image.open("crop.png")) != before).any()


def test_several_faces_are_noted_on_stderr(run):
    result = run("edit", "group.png", "--prompt", "glasses", "--landmarks", "two.json", "--out", "a.png")
    assert "note: the photo has 2 faces; this is number 1 from the left (--face N)" in result.stderr
    sheet = run("edit", "group.png", "--prompt", "glasses", "--landmarks", "two.json", "--grid", "--out", "b.png")
    assert "note: the photo has 2 faces" in sheet.stderr


def test_invert_takes_the_same_options(run):
    out = record(run("invert", "group.png", "--landmarks", "two.json", "--face", 2, "--out", "w.npz", "--json"))
    assert (out["face"], out["faces"]) == (2, 2)
    whole = record(run("invert", "group.png", "--no-align", "--out", "v.npz", "--json"))
    assert (whole["face"], whole["quad"]) == (None, None)
    assert not np.array_equal(np.load("w.npz")["w"], np.load("v.npz")["w"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--landmarks FILE"),
        (["--landmarks", "one.json", "--no-align"], "--no-align"),
        (["--landmarks", "one.json", "--landmark-model", "m.onnx"], "give one of them"),
        (["--landmark-model", "m.onnx", "--no-align"], "--no-align"),
        (["--landmark-model", "missing.onnx"], "is no file"),
        (["--landmarks", "missing.json"], "missing.json is no file"),
        (["--landmarks", "group.png"], "no JSON, .npy or .pts"),
        (["--landmarks", "one.json", "--face", "2"], "expected 1 to 1"),
        (["--landmarks", "one.json", "--paste", "--grid"], "a sheet shows crops"),
        (["--landmarks", "one.json", "--paste", "--out", "group.png"], "is the input"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["edit", "invert"])
def test_mistakes_are_one_line_and_leave_nothing(run, command, args, message):
    if command == "invert" and {"--paste", "--grid"} & set(args):
        args, message = [arg for arg in args if arg != "--grid"], "No such option"
    before = Path("group.png").read_bytes()
    result = run(command, "group.png", *args)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert outputs() == set()
    assert Path("group.png").read_bytes() == before


@pytest.mark.parametrize("option", ["--paste", "--paste-crop", "--no-align", "--face=1", "--landmarks=one.json"])
def test_latents_have_no_photo(run, option):
    record(run("invert", "group.png", "--no-align", "--out", "w.npz", "--json"))
    for sheet in ([], ["--grid"]):
        result = run("edit", "w.npz", "--prompt", "glasses", option, *sheet)
        assert result.exit_code == 2, result.output
    assert outputs() == {"w.npz"}


def huge_png() -> bytes:
    """A header of 20000 x 20000 pixels over no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def hostile() -> dict[str, bytes]:
    cut = Path("group.png").read_bytes()
    return {
        "huge": huge_png(),
        "cut": cut[: len(cut) // 2],
        "empty": b"",
        "text": b"no picture",
        "zeros": bytes(10_000),
    }


def test_hostile_photos_leave_no_pasted_picture(run):
    for name, data in hostile().items():
        Path("hostile").write_bytes(data)
        for place in (["--landmarks", "one.json"], ["--no-align"]):
            result = run("edit", "hostile", "--paste", "--out", "out.png", *place)
            assert (name, result.exit_code) == (name, 2), result.output
            assert result.stderr.startswith("error: ")
    assert outputs() == {"hostile"}

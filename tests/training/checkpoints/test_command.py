"""`styleclip-rt pack` at the command line: import, info, verify; text, JSON, dry runs, errors and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

sys.path.insert(0, str(Path(__file__).parent))

import writers
import writers_encoders as files
from click.testing import CliRunner

from styleclip_rt.runtime.cli import cli

SIZES = {"size": 16, "width": 12, "mapping": 2, "channels": {4: 8, 8: 6, 16: 4}}


def run(*arguments):
    return CliRunner().invoke(cli, ["pack", *map(str, arguments)])


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("files") / "a generator.bin"
    writers.write_rosinality(path, **SIZES)
    return path


@pytest.fixture
def pack(generator, tmp_path) -> Path:
    result = run("import", "--generator", generator, "--statistics", "compute:20", "--out", tmp_path / "pack")
    assert result.exit_code == 0, result.output
    return tmp_path / "pack"


def test_an_import_says_what_it_took_and_which_licence_is_missing(generator, tmp_path):
    result = run("import", "--generator", generator, "--out", tmp_path / "pack")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["generator", "rosinality", "StyleGAN2", "unknown"]
    assert f"pack: {tmp_path / 'pack'}" in result.stdout
    assert "note: generator: its licence is unknown; state it with --licence generator=TEXT" in result.stderr


def test_json_is_one_object_and_nothing_else(generator, tmp_path):
    result = run("import", "--generator", generator, "--licence", "generator=MIT", "--out", tmp_path / "p", "--json")
    report = json.loads(result.stdout)
    assert report["imported"]["generator"]["licence"] == "MIT"
    assert report["notes"] == []
    assert json.loads(run("info", tmp_path / "p", "--json").stdout)["components"]["generator"]["licence"] == "MIT"


def test_a_dry_run_writes_nothing(generator, tmp_path):
    arguments = ("import", "--generator", generator, "--statistics", "compute", "--out", tmp_path / "pack", "--dry-run")
    report = json.loads(run(*arguments, "--json").stdout)
    assert [row["format"] for row in report["files"]] == ["rosinality StyleGAN2", "compute"]
    assert report["components"] == ["generator", "statistics"]
    assert report["graphs"] == ["mapping", "style", "synthesize", "synthesize_u8"]
    assert report["missing"]["edit_global"] == ["clip", "directions"]
    text = run(*arguments).stdout
    assert "would be written" in text
    assert "  invert needs inverter" in text
    assert list(tmp_path.iterdir()) == []


def test_info_tells_origin_sizes_and_what_is_missing(pack):
    text = run("info", pack).stdout
    assert "from a generator.bin, SHA-256 " in text
    assert "resolution 16, num_ws 6, w_dim 12, style_channels 50, sigma tf" in text
    assert "export makes: mapping, style, synthesize, synthesize_u8" in text
    assert "  direction needs clip, directions" in text
    report = json.loads(run("info", pack, "--json").stdout)
    assert report["model"]["resolution"] == 16
    assert len(report["components"]["generator"]["origin"]["sha256"]) == 64


def test_info_and_verify_know_the_shipped_pack():
    assert "export makes: mapping, style, synthesize, synthesize_u8, invert" in run("info", "toyfaces").stdout
    result = run("verify", "toyfaces")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("sound\n")


def test_verify_fails_on_a_damaged_pack_and_says_where(pack):
    path = pack / "statistics.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("verify", pack, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"], list(report["faults"])) == (3, False, ["statistics"])
    text = run("verify", pack)
    assert (text.exit_code, text.stdout.splitlines()[0].split()) == (3, ["generator", "ok"])
    assert "SHA-256" in text.stdout


def test_a_mapper_is_added_under_its_published_name(pack, tmp_path):
    import torch

    torch.save(files.write_mapper("LevelsMapper", width=12, opts={"stylegan_size": 16}), tmp_path / "m.pt")
    result = run("import", "--pack", pack, "--mapper", f"Purple hair={tmp_path / 'm.pt'}", "--out", pack)
    assert result.exit_code == 0, result.output
    assert "mapper/purple_hair" in run("info", pack).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "nothing to import"),
        (("--generator", "nowhere.pt"), 2, "there is no file nowhere.pt"),
        (("--mapper", "bobcut"), 2, "expected NAME=FILE"),
        (("--mapper", "a=x", "--mapper", "a=y"), 2, "given twice"),
        (("--licence", "generator"), 2, "expected COMPONENT=TEXT"),
        (("--identity", "GENERATOR"), 3, "it is rosinality StyleGAN2 (--generator)"),
        (("--directions", "W"), 3, "samples of w"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line_with_an_exit_code(generator, tmp_path, arguments, code, message):
    np.save(tmp_path / "W.npy", np.full((9, 12), 2.0))
    places = {"GENERATOR": str(generator), "W": str(tmp_path / "W.npy")}
    result = run("import", *[places.get(a, a) for a in arguments], "--out", tmp_path / "pack")
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "pack").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(generator, tmp_path, full_disk):
    with full_disk():
        result = run("import", "--generator", generator, "--out", tmp_path / "pack")
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1] == (
        "error: the result cannot be written: No space left on device; free some space and run the command again"
    )
    assert not (tmp_path / "pack").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".pack")]

"""The command line on a bundle in memory: options, pairing, files, errors, JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from styleclip_rt import __version__
from styleclip_rt.engines import nvinfer
from styleclip_rt.runtime import cli, cli_common
from styleclip_rt.runtime.cli_order import paired


@pytest.fixture
def run(bundle_folder: Path, opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command in an empty folder; --bundle names the bundle in memory unless `bare`."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*args: object, bare: bool = False) -> Result:
        extra = [] if bare or args[0] not in ("edit", "invert", "generate") else ["--bundle", str(bundle_folder)]
        return CliRunner().invoke(cli.cli, [*map(str, args), *extra], prog_name="styleclip-rt")

    return call


def record(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# edit -----------------------------------------------------------------------------------------------------------------


def test_edit_writes_a_picture_and_says_what_it_did(run, photo_file):
    result = run("edit", photo_file, "--prompt", "purple hair", "--alpha", 3, "--beta", 0.12)
    assert result.exit_code == 0, result.output
    assert Image.open("face-purple-hair.png").size == (8, 8)
    assert "a face with purple hair (alpha 3 beta 0.12)" in result.stdout
    assert "channels" in result.stdout
    assert [p.name for p in Path().iterdir()] == ["face-purple-hair.png"]


def test_json_is_all_that_stdout_holds(run, photo_file):
    out = record(run("edit", photo_file, "--json", "--out", "a.png"))
    assert out["out"] == "a.png"
    assert out["method"] == "global"
    assert out["prompts"] == [
        {
            "kind": "prompt",
            "name": "bob-cut",
            "target": "a face with a bob-cut",
            "neutral": "a face",
            "alpha": 3.0,
            "beta": 0.04,
            "resolutions": None,
        }
    ]
    assert out["channels"] > 0
    assert -1 <= out["identity"] <= 1
    assert set(out["timings_ms"]) >= {"decode", "invert", "synthesize", "total"}
    assert out["bundle"]["name"] == "fake"


@pytest.mark.parametrize("command", ["edit", "invert", "generate"])
def test_the_engine_and_why_it_was_chosen_are_told_once(run, photo_file, command):
    args = [command] if command == "generate" else [command, photo_file]
    told = run(*args)
    assert told.exit_code == 0, told.output
    assert told.stderr == "engine: onnxruntime on cpu; CUDA is not used: no card is there\n"
    assert "engine:" not in told.stdout
    silent = run(*args, "--json")
    reason = {"name": "onnxruntime", "device": "cpu", "reason": "CUDA is not used: no card is there"}
    assert record(silent)["engine"] == reason
    assert silent.stderr == ""


def test_builds_of_plans_are_told_where_a_command_opens_a_bundle(run, opened, monkeypatch, capsys):
    assert run("generate", "--count", 1).exit_code == 0
    capsys.readouterr()
    progress = opened[0].progress
    for done in range(3):
        assert progress("synthesize", "tactics", done, 3), "a command never ends a build"
    progress("synthesize", "finished", 1, 1)
    begun, ended = capsys.readouterr().err.splitlines()
    assert begun == "TensorRT builds a plan of synthesize, once on this machine; it can take minutes"
    assert ended == "TensorRT: synthesize, 0 s"


def test_on_a_terminal_a_build_is_one_line_that_goes_away(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = cli_common.build_progress()
    progress("synthesize", "tactics " + "x" * 200, 1, 3)
    progress("invert", "tactics", 2, 3)
    progress("invert", "finished", 1, 1)
    first, second, last = capsys.readouterr().err.split("\r\x1b[K")[1:]
    assert first.startswith("TensorRT builds synthesize: tactics xxx")
    assert len(first) == 110
    assert (second, last) == ("TensorRT builds invert: tactics 2/3, 0 s", "")


def test_the_bundle_is_named_on_stderr_when_the_user_named_none(run, photo_file, bundle_folder, home):
    (home / "bundles").mkdir(parents=True)
    bundle_folder.rename(home / "bundles" / "mine")
    result = run("edit", photo_file, bare=True)
    assert "bundle: mine (newest export" in result.stderr
    assert "bundle:" not in result.stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--prompt", "purple hair", "--alpha", 3, "--prompt", "glasses", "--alpha", 2], [3, 2]),
        (["--prompt", "purple hair", "--alpha", 3, "--prompt", "glasses"], [3, 2.5]),
        (["--prompt", "purple hair", "--prompt", "glasses", "--alpha", -2], [-2, -2]),
        (["--alpha", 4, "--prompt", "purple hair", "--prompt", "glasses"], [4, 4]),
        (["--prompt", "purple hair", "--prompt", "glasses"], [2, 2.5]),
        (["--alpha", 1, "--prompt", "purple hair", "--alpha", 2, "--prompt", "glasses"], [1, 2]),
    ],
)
def test_several_prompts_combine_each_with_its_alpha(run, photo_file, args, expected):
    out = record(run("edit", photo_file, *args, "--json", "--out", "a.png"))
    assert [p["alpha"] for p in out["prompts"]] == expected
    assert [p["name"] for p in out["prompts"]] == ["purple-hair", "glasses"]


def test_pairing_beyond_two_prompts():
    order = ["prompts", "alphas", "prompts", "prompts", "alphas"]
    assert paired(order, "alphas", ["a", "b"], 3) == ["a", "b", "b"]
    assert paired(order, "betas", [], 3) == [None] * 3
    assert paired(["alphas"], "alphas", ["a"], 0) == ["a"]
    with pytest.raises(click.UsageError, match="no prompt"):
        paired(["prompts", "alphas", "alphas"], "alphas", ["a", "b"], 1)


def test_beta_and_neutral_follow_their_prompt(run, photo_file):
    args = ["--prompt", "glasses", "--beta", "auto", "--prompt", "bob-cut", "--neutral", "a portrait", "--beta", 0]
    out = record(run("edit", photo_file, *args, "--json", "--out", "a.png"))
    assert [p["beta"] for p in out["prompts"]][1] == 0
    assert [p["neutral"] for p in out["prompts"]] == ["a portrait", "a portrait"]


def test_mapper(run, photo_file):
    out = record(run("edit", photo_file, "--prompt", "glasses", "--method", "mapper", "--json", "--out", "a.png"))
    assert (out["prompts"][0]["alpha"], out["prompts"][0]["beta"]) == (0.8, None)
    failed = run("edit", photo_file, "--method", "mapper")
    assert failed.exit_code == 2
    assert "mappers: glasses" in failed.stderr


@pytest.mark.parametrize(
    ("args", "rows", "columns"),
    [
        (["--grid"], 4, 7),
        (["--alpha", "-3..6"], 1, 10),
        (["--grid", "--alpha", "0,2", "--beta", "0.05,0.1"], 2, 2),
        (["--grid", "--prompt", "glasses", "--prompt", "purple hair", "--alpha", "0..3:1.5"], 2, 3),
        (["--grid", "--prompt", "glasses,purple hair,bob-cut"], 3, 7),
        (["--grid", "--prompt", "glasses", "--method", "mapper"], 1, 7),
        (["--beta", "auto,0.05"], 2, 7),
    ],
)
def test_sheets(run, photo_file, args, rows, columns):
    out = record(run("edit", photo_file, *args, "--json", "--out", "a.png"))
    assert len(out["alphas"]) == columns
    assert len(out["rows"]) == (4 if args[0] == "--alpha" else rows)
    assert list(Image.open("a.png").size) == out["size"]


def test_a_comma_in_free_text_is_no_list(run, photo_file):
    out = record(
        run("edit", photo_file, "--grid", "--prompt", "a face with glasses, smiling", "--json", "--out", "a.png")
    )
    assert {row["target"] for row in out["rows"]} == {"a face with glasses, smiling"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--alpha", "strong"], "a number, a list"),
        (["--alpha", "6..-3"], "smaller to the larger"),
        (["--alpha", "0..1:0.0001"], "at most 41"),
        (["--alpha", "nan"], "not a finite number"),
        (["--beta", "1..2:x"], "or auto"),
        (["--alpha", "1000"], "-100 to 100"),
        (["--beta", "1"], "largest relevance"),
        (["--beta", "2"], "0 to 1"),
        (["--prompt", " "], "prompt is empty"),
        (["--out", "a.xyz"], "expected one of .png"),
        (["--alpha", "1", "--alpha", "2"], "no prompt"),
        (["--grid", "--alpha", "1", "--alpha", "2"], "one --alpha"),
        (["--method", "magic"], "magic"),
    ],
)
def test_bad_options_are_one_clear_line_and_leave_no_file(run, photo_file, args, words):
    result = run("edit", photo_file, *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert not list(Path().iterdir())


def test_sample_is_the_portrait_that_ships(run, photo_file, monkeypatch):
    from styleclip_rt.runtime import store

    assert "cannot read 'sample'" in run("edit", "sample").stderr or store.sample_portrait().exists()
    monkeypatch.setattr(store, "sample_portrait", lambda: photo_file)
    assert record(run("edit", "sample", "--json"))["out"] == "sample-bob-cut.png"
    assert record(run("invert", "sample", "--json"))["out"] == "sample-latents.npz"


def test_bad_photos_are_one_line(run, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    for image in (bad, tmp_path / "absent.png", tmp_path):
        result = run("edit", image)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_missing_bundle_has_its_own_exit_code(run, photo_file):
    result = run("edit", photo_file, "--bundle", "no-such-bundle", bare=True)
    assert result.exit_code == 3
    assert "no bundle 'no-such-bundle'" in result.stderr


def test_the_input_is_never_replaced(run, photo_file):
    before = photo_file.read_bytes()
    result = run("edit", photo_file, "--out", photo_file)
    assert result.exit_code == 2
    assert "is the input" in result.stderr
    assert photo_file.read_bytes() == before


def test_ctrl_c_is_clean(run, photo_file, monkeypatch):
    from styleclip_rt.runtime.editor import Editor

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Editor, "invert", interrupted)
    result = run("edit", photo_file)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert not list(Path().iterdir())


# invert, generate -----------------------------------------------------------------------------------------------------


def test_invert_then_edit_equals_edit(run, photo_file):
    out = record(run("invert", photo_file, "--preview", "p.png", "--json"))
    assert out["w"] == [1, 4, 6]
    assert Image.open("p.png").size == (8, 8)
    run("edit", "face-latents.npz", "--out", "a.png")
    run("edit", photo_file, "--out", "b.png")
    np.testing.assert_array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("b.png")))


def test_latents_files_that_are_none(run, tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "shape.npz", w=np.zeros((1, 9, 9)))
    np.savez(tmp_path / "pickle.npz", w=np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "bomb.npz", w=np.zeros((1, 4, 1 << 23), np.float32))
    for name in ("other", "shape", "pickle", "bomb"):
        result = run("edit", tmp_path / f"{name}.npz")
        assert (result.exit_code, result.stderr[:7]) == (2, "error: "), result.output


def test_generate_a_sheet_a_face_and_a_folder(run):
    assert run("generate", "--seed", 1, "--count", 5, "--out", "sheet.png").exit_code == 0
    assert Image.open("sheet.png").width > 5 * 128
    assert run("generate", "--seed", 3, "--count", 1, "--out", "one.png").exit_code == 0
    out = record(run("generate", "--seed", 1, "--count", 3, "--out", "faces/", "--json"))
    assert out["out"] == [f"faces/seed{s:06d}.png" for s in (1, 2, 3)]
    np.testing.assert_array_equal(np.asarray(Image.open("faces/seed000003.png")), np.asarray(Image.open("one.png")))


# the rest -------------------------------------------------------------------------------------------------------------


def test_version(run):
    assert run("--version").stdout == f"styleclip-rt {__version__}\n"


def test_info(run, monkeypatch):
    """Every engine with its state; one that cannot run has its reason and the line that mends it."""
    monkeypatch.setattr(nvinfer, "installed", lambda: "")
    text = run("info")
    assert text.exit_code == 0, text.output
    out = record(run("info", "--json"))
    assert out["version"] == __version__
    rows = {(engine["name"], engine["device"]): engine for engine in out["engines"]}
    assert {("onnxruntime", "cpu"), ("onnxruntime", "cuda"), ("openvino", "cpu"), ("tensorrt", "cuda")} <= set(rows)
    assert rows["onnxruntime", "cpu"]["usable"]
    assert all(engine["usable"] or engine["reason"] for engine in out["engines"])
    tensorrt = rows["tensorrt", "cuda"]
    assert tensorrt["mend"] == "python -m pip install 'styleclip-rt[tensorrt]'"
    assert tensorrt["note"] == "built and parsed in CI, not yet run on hardware"
    lines = text.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["tensorrt", "cuda"])
    assert "not usable: not installed" in lines[at]
    assert lines[at].endswith("[built and parsed in CI, not yet run on hardware]")
    assert lines[at + 1].strip() == "mend it with: python -m pip install 'styleclip-rt[tensorrt]'"
    assert text.stdout.count("mend it with:") == sum(bool(engine["mend"]) for engine in out["engines"])


def test_info_lists_bundles_with_their_prompts(run, bundle_folder, home):
    (home / "bundles").mkdir(parents=True)
    bundle_folder.rename(home / "bundles" / "mine")
    found = record(run("info", "--json"))["bundles"][0]
    assert (found["name"], found["origin"]) == ("mine", "export")
    assert found["prompts"] == ["bob-cut", "purple-hair", "glasses"]
    assert found["mappers"] == ["glasses"]
    assert "bob-cut, purple-hair, glasses" in run("info").stdout


def test_prompt_names_complete(bundle_folder):
    context = click.Context(click.Command("edit"))
    context.params["bundle"] = str(bundle_folder)
    items = cli_common.complete_prompt(context, click.Option(["--prompt"]), "g")
    assert [item.value for item in items] == ["glasses"]
    context.params["bundle"] = "nowhere"
    assert cli_common.complete_prompt(context, click.Option(["--prompt"]), "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run, shell):
    result = run("completion", shell)
    assert result.exit_code == 0, result.output
    assert "_STYLECLIP_RT_COMPLETE" in result.stdout


def test_completion_of_names_imports_no_command(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    context = click.Context(cli.cli)
    assert [item.value for item in cli.cli.shell_complete(context, "e")] == ["edit", "export", "evaluate"]


@pytest.mark.parametrize("command", ["edit", "invert", "generate", "info", "completion"])
def test_every_help_has_two_examples(run, command):
    result = run(command, "--help", bare=True)
    assert result.exit_code == 0
    assert result.stdout.split("Examples:")[1].count("styleclip-rt") >= 2


def test_the_help_of_the_group_imports_nothing_heavy(run, monkeypatch):
    monkeypatch.setattr(cli_common.importlib, "import_module", lambda name: pytest.fail(name))
    result = run("--help")
    assert all(name in result.stdout for name in cli.COMMANDS)


def test_a_command_that_lacks_torch_names_the_extra(run, monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli_common.importlib, "import_module", absent)
    result = run("export", "--prompt", "bob-cut")
    assert result.exit_code == 7
    assert 'pip install "styleclip-rt[torch]"' in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_command_is_a_usage_error(run):
    assert run("edti").exit_code == 2

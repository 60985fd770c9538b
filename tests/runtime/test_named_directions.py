"""Named directions of a bundle in memory: edits along them, mixed with prompts, and tables that lie."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from styleclip_rt.engines.errors import BundleError, InputError
from styleclip_rt.runtime import cli, cli_edit, edits, grids, named
from styleclip_rt.runtime.cli_order import paired
from styleclip_rt.runtime.editor import Editor
from styleclip_rt.runtime.steps import plan

from .conftest import CONV, S

ALPHAS = ("--alpha", 1, "--alpha", 2, "--alpha", 3)
ENTRIES: dict[str, Any] = {
    "age": {"row": 0, "relevance_row": None, "method": "ganspace", "alpha": 2.0, "beta": None},
    "beard": {
        "row": 1,
        "relevance_row": 2,
        "method": "gradient",
        "beta": 0.4,
        "target": "a beard",
        "neutral": "a face",
    },
}


def rows() -> np.ndarray:
    table = np.random.default_rng(3).standard_normal((3, S)).astype(np.float32)
    table[:, CONV:] = 0
    return table


@pytest.fixture
def folder(make_bundle) -> Path:
    folder = make_bundle("directed", directions=ENTRIES, direction_table="directions.npy")
    np.save(folder / "directions.npy", rows())
    return folder


@pytest.fixture
def editor(folder, opened) -> Editor:
    return Editor.open(folder)


@pytest.fixture
def run(folder, opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli.cli, [*map(str, args), "--bundle", str(folder)])


def synthesised(editor: Editor, w, delta_s) -> np.ndarray:
    return editor.synthesize(editor.styles(w) + delta_s)[0]


# edits ----------------------------------------------------------------------------------------------------------------


def test_a_direction_is_one_addition_in_style_space(editor, photo):
    result = editor.edit(photo, direction="age", alpha=3)
    assert editor.directions_named == ("age", "beard")
    np.testing.assert_array_equal(np.asarray(result.image), synthesised(editor, result.w, 3 * rows()[:1]))
    np.testing.assert_array_equal(result.delta_s, rows()[0])
    assert (result.prompt, result.alpha, result.beta) == ("age", 3, None)
    assert len(result.channels) == CONV
    used = editor.bundle.runs
    assert used["encode_text"] == used["direction"] == used["edit_global"] == 0


def test_what_is_not_given_is_what_was_recommended(editor, photo):
    result = editor.edit(photo, direction=["age", "beard"])
    assert result.alpha == (2, 1)
    assert result.beta == (None, 0.4)


def test_a_threshold_keeps_the_channels_above_it(editor, photo):
    _, step, relevance = rows()
    result = editor.edit(photo, direction="beard", alpha=1, beta=1)
    kept = np.abs(relevance) >= 1
    assert 0 < kept.sum() < CONV
    np.testing.assert_array_equal(result.delta_s, np.where(kept, step, 0))


def test_a_threshold_on_the_whole_step_is_section_6_of_the_paper(editor):
    table, sigma, delta_t = (
        editor.bundle.table,
        editor.bundle.sigma,
        edits.normalise(np.ones(editor.bundle.table.shape[1])),
    )
    r = edits.relevance(table, delta_t)
    whole = edits.direction(table, delta_t, 0, sigma)
    for beta in (0.05, 0.2, float(np.abs(r).max())):
        np.testing.assert_allclose(np.where(np.abs(r) >= beta, whole, 0), edits.direction(table, delta_t, beta, sigma))


def test_auto_takes_the_published_rule(editor):
    auto = editor.edit_latents(editor.sample([1]), direction="beard", beta="auto")
    assert auto.beta == edits.suggested_beta(rows()[2])


def test_a_direction_moves_latents_of_style_space_alike(editor):
    w = editor.sample([1])
    s = editor.styles(w)
    for asked in ({"direction": "age", "alpha": 3}, {"direction": ["age", "beard"]}):
        of_w, of_s = editor.edit_latents(w, **asked), editor.edit_latents(s, **asked)
        np.testing.assert_array_equal(np.asarray(of_s.image), np.asarray(of_w.image))
        assert of_s.w is None
    np.testing.assert_array_equal(
        np.asarray(editor.edit_latents(s, direction="age", alpha=0).image), editor.synthesize(s)[0]
    )


def test_prompts_and_directions_mix_in_one_edit(editor, photo):
    result = editor.edit(photo, "glasses", [2, 3], direction="age", beta=0.05)
    alone = editor.edit(photo, "glasses", 2, 0.05)
    np.testing.assert_allclose(result.delta_s, np.stack([alone.delta_s, rows()[0]]), atol=1e-6)
    mixed = synthesised(editor, result.w, 2 * alone.delta_s + 3 * rows()[0])
    assert np.abs(np.asarray(result.image).astype(int) - mixed).max() <= 1
    assert result.prompt == ("a face with glasses", "age")
    assert result.beta == (0.05, None), "a single beta serves those that take one"


def test_a_mapper_and_a_direction_mix_too(editor, photo):
    result = editor.edit(photo, "glasses", [0.5, 3], direction="age", method="mapper")
    w = result.w + np.float32(0.5 * 0.1) * np.tanh(result.w)
    mixed = synthesised(editor, w, 3 * rows()[0])
    assert np.abs(np.asarray(result.image).astype(int) - mixed).max() <= 1
    assert editor.edit(photo, direction="age", method="mapper").prompt == "age"


def test_a_slider_along_a_direction_is_the_edit(editor, photo):
    slider = editor.slider(photo, direction="beard", beta=1)
    for alpha in (-2, 0, 3):
        edit = editor.edit(photo, direction="beard", alpha=alpha, beta=1)
        assert np.abs(np.asarray(slider.at(alpha)).astype(int) - np.asarray(edit.image)).max() <= 1
    with pytest.raises(InputError, match="one prompt or one named direction"):
        editor.slider(photo, "glasses", direction="beard")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"direction": "smile"}, "'smile'.*its directions: age, beard"),
        ({"direction": "age", "beta": 0.1}, "'age' .ganspace. takes no beta"),
        ({"direction": "age", "beta": "auto"}, "takes no beta"),
        ({"direction": ["age", "beard"], "beta": [0.1, 0.1]}, "takes no beta"),
        ({"direction": "beard", "beta": 2}, "beta is 2"),
        ({"direction": "beard", "alpha": 1e9}, "alpha is 1e"),
        ({"direction": "beard", "alpha": [1, 2]}, "2 values of alpha for 1 prompts or directions"),
        ({"direction": "beard", "neutral": "a face"}, "neutral is the text that a prompt"),
        ({"direction": []}, "no prompt was given"),
    ],
)
def test_what_cannot_be_done_is_said(editor, photo, request_, words):
    with pytest.raises(InputError, match=words):
        editor.edit(photo, **request_)


def test_too_high_a_threshold_names_one_that_works(editor, photo):
    largest = float(np.abs(rows()[2]).max())
    assert largest > 1, "the case needs relevances above every beta"
    np.save(editor.bundle.path / "directions.npy", rows() / (2 * largest))
    with pytest.raises(InputError, match=r"beta 0.9 leaves no channel for 'beard': the largest relevance is 0.5"):
        editor.edit(photo, direction="beard", beta=0.9)


def test_bundles_without_directions_are_as_before(bundle_folder, opened, photo):
    editor = Editor.open(bundle_folder)
    assert editor.directions_named == ()
    with pytest.raises(InputError, match="its directions: none"):
        editor.edit(photo, direction="age")
    assert [step.prompt.name for step in plan(editor.model)] == ["bob-cut"]


# tables from strangers ------------------------------------------------------------------------------------------------


def npy(header: bytes, data: bytes = b"") -> bytes:
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def saved(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


HUGE = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 60}, {S}), }}".encode()
HOSTILE = {
    "no npy": (b"PK\x03\x04" + bytes(200), "is no .npy file"),
    "empty": (b"", "is no .npy file"),
    "pickled objects": (saved(np.array([[None] * S]), allow_pickle=True), "holds object"),
    "a claim of exabytes": (npy(HUGE, bytes(64)), "64 bytes of data for an array of"),
    "code in the header": (npy(b"__import__('os').system('true')"), "is no .npy file"),
    "a negative shape": (
        npy(HUGE.replace(str(1 << 60).encode(), b"-1"), bytes(4 * S)),
        "bytes of data|is no .npy file",
    ),
    "cut short": (saved(rows())[:-4], "bytes of data for an array of"),
    "something behind": (saved(rows()) + b"x", "bytes of data for an array of"),
    "doubles": (saved(rows().astype(np.float64)), "holds float64"),
    "column-major": (saved(np.asfortranarray(rows())), "expected row-major float32"),
    "other channels": (saved(rows()[:, 1:].copy()), f"expected row-major float32 .K, {S}."),
    "too few rows": (saved(rows()[:2]), "has 2 rows, the manifest names row 2"),
    "not finite": (saved(np.full((3, S), np.nan, np.float32)), "no finite numbers"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_table_that_is_not_what_it_says_is_refused(folder, opened, photo, content, words):
    (folder / "directions.npy").write_bytes(content)
    editor = Editor.open(folder)
    with pytest.raises(BundleError, match=words):
        editor.edit(photo, direction="age")
    assert editor.edit(photo, "glasses").image, "the rest of the bundle works"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("age", {"row": -1}),
        ("age", {"row": True}),
        ("age", {"row": "0"}),
        ("age", {"relevance_row": 1.5}),
        ("age", {"method": 3}),
        ("age", {"alpha": "much"}),
        ("age", {"alpha": 1e99}),
        ("age", {"target": ["a"]}),
        ("../age", {}),
        ("Age", {}),
        ("", {}),
    ],
)
def test_a_hostile_manifest_is_refused_when_it_is_opened(make_bundle, opened, name, change):
    folder = make_bundle("hostile", directions={name: {**ENTRIES["age"], **change}}, direction_table="directions.npy")
    with pytest.raises(BundleError, match=r"directions?"):
        Editor.open(folder)


def test_directions_without_a_table_are_refused_when_used(make_bundle, opened, photo):
    editor = Editor.open(make_bundle("tableless", directions=ENTRIES))
    with pytest.raises(BundleError, match="directions without direction_table"):
        editor.edit(photo, direction="age")


def test_the_table_is_read_once(editor, photo):
    editor.edit(photo, direction="age")
    (editor.bundle.path / "directions.npy").unlink()
    assert editor.edit(photo, direction="beard").image
    assert named.read_table(io.BytesIO(saved(rows())), len(saved(rows())), S, "here").shape == (3, S)


# command line ---------------------------------------------------------------------------------------------------------


def test_edit_along_a_direction(run, photo_file):
    result = run("edit", photo_file, "--direction", "age", "--alpha", 3)
    assert result.exit_code == 0, result.output
    assert "face-age.png  age (alpha 3)" in result.stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--direction", "age", "--alpha", 2, "--prompt", "glasses", "--alpha", 3], {"glasses": 3, "age": 2}),
        (["--prompt", "glasses", "--direction", "age", "--alpha", 2], {"glasses": 2, "age": 2}),
        (["--direction", "age", "--prompt", "glasses", "--direction", "beard", *ALPHAS],
         {"glasses": 2, "age": 1, "beard": 3}),
        (["--direction", "beard", "--alpha", 2, "--direction", "age"], {"beard": 2, "age": 2.0}),
    ],
)  # fmt: skip
def test_each_alpha_follows_its_prompt_or_direction(run, photo_file, args, expected):
    result = run("edit", photo_file, *args, "--json", "--out", "a.png")
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)["prompts"]
    assert {entry["name"]: entry["alpha"] for entry in out} == expected
    assert {entry["name"]: entry["kind"] for entry in out if entry["kind"] == "prompt"}.keys() <= {"glasses"}


def test_pairing_counts_prompts_and_directions():
    order = ["prompts", "alphas", "directions", "alphas"]
    assert paired(order, "alphas", [(1,), (2,)], 2, cli_edit.HEADS) == [(1,), (2,)]
    with pytest.raises(click.UsageError, match="one has no prompt or direction"):
        paired(["directions", "alphas", "alphas", "alphas"], "alphas", [1, 2, 3], 2, cli_edit.HEADS)


@pytest.mark.parametrize(
    ("args", "rows_of_it"),
    [
        (["--direction", "age", "--alpha", "-2..2"], 1),
        (["--direction", "beard", "--grid"], 4),
        (["--direction", "beard", "--alpha", "-1..1", "--beta", "0.1,0.5"], 2),
        (["--direction", "age", "--prompt", "glasses", "--direction", "beard", "--grid"], 3),
    ],
)
def test_sheets_of_directions(run, photo_file, args, rows_of_it):
    result = run("edit", photo_file, *args, "--json", "--out", "sheet.png")
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert len(out["rows"]) == rows_of_it
    assert {row["kind"] for row in out["rows"]} <= {"prompt", "direction"}


def test_a_sheet_row_is_the_edits_along_it(editor):
    w = editor.sample([4])
    grid = grids.beta_grid(editor, w, alphas=(-1, 2), direction="age")
    (row,) = grid.rows
    np.testing.assert_allclose(row.styles, editor.styles(w) + np.array([[-1], [2]]) * rows()[0], atol=1e-5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--direction", "smile"], "its directions: age, beard"),
        (["--direction", "age", "--beta", 0.1], "takes no beta"),
        (["--direction", "age", "--beta", "0.1,0.2"], "takes no beta"),
        (["--direction", "age", "--neutral", "a face"], "neutral is the text"),
    ],
)
def test_wrong_options_are_one_line(run, photo_file, args, words):
    result = run("edit", photo_file, *args)
    assert result.exit_code == InputError.exit_code, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_info_and_the_shell_know_the_names(folder, home, opened):
    target = home / "bundles" / "directed"
    target.parent.mkdir(parents=True)
    folder.rename(target)
    assert "directions: age, beard" in CliRunner().invoke(cli.cli, ["info"]).output
    command = cli.cli.get_command(click.Context(cli.cli), "edit")
    context = click.Context(command)
    context.params["bundle"] = str(target)
    option = next(param for param in command.params if param.name == "directions")
    assert [item.value for item in option.shell_complete(context, "a")] == ["age"]

"""Edits of some layers alone: ranges as users write them, the maths, and what a bundle recommends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from styleclip_rt.engines.errors import BundleError, InputError
from styleclip_rt.runtime import cli, edits, grids
from styleclip_rt.runtime.editor import Editor
from styleclip_rt.runtime.resolutions import checked_resolutions, lowest, resolution_mask
from styleclip_rt.runtime.steps import plan

from .conftest import CONV, PROMPTS, RGB, S, manifest

LOW = CONV // 2
LAYERS = [
    {"name": "b4.conv1", "kind": "conv", "w_index": 0, "offset": 0, "channels": LOW},
    {"name": "b8.conv0", "kind": "conv", "w_index": 1, "offset": LOW, "channels": CONV - LOW},
    {"name": "b8.torgb", "kind": "torgb", "w_index": 1, "offset": CONV, "channels": RGB},
]


@pytest.fixture
def folder(make_bundle) -> Path:
    prompts = {**PROMPTS, "glasses": {**PROMPTS["glasses"], "resolutions": "8-"}}
    entry = {"method": "ganspace", "alpha": 1.0, "row": 0}
    low = {"method": "stylespace", "row": 1}
    folder = make_bundle(
        "layered",
        model={**manifest()["model"], "layers": LAYERS},
        prompts=prompts,
        directions={"age": entry, "low": low},
        direction_table="directions.npy",
    )
    table = np.random.default_rng(3).standard_normal((2, S)).astype(np.float32)
    table[1, LOW:] = 0
    np.save(folder / "directions.npy", table)
    return folder


@pytest.fixture
def editor(folder, opened) -> Editor:
    return Editor.open(folder)


@pytest.fixture
def run(folder, opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli.cli, [*map(str, args), "--bundle", str(folder)])


@pytest.mark.parametrize(
    ("text", "usual", "low"),
    [("32-", "32-", 32), ("8 - 16", "8-16", 8), ("16", "16", 16), ("8-8", "8", 8), ("-16", "-16", 0),
     ("0-16", "-16", 0), ("all", None, 0), (" ALL ", None, 0), ("0-", None, 0), (None, None, 0)],
)  # fmt: skip
def test_ranges_have_one_usual_form(text: str | None, usual: str | None, low: int) -> None:
    assert checked_resolutions(text) == usual
    assert checked_resolutions(usual) == usual
    assert lowest(text) == low


@pytest.mark.parametrize("text", ["", "-", "fine", "16-8", "8..16", "1e3", "8-16-32", "99999999", 16, ["8-"]])
def test_what_is_no_range_says_what_one_is(text: Any) -> None:
    with pytest.raises(InputError, match="expected a range such as 32-"):
        checked_resolutions(text)


def test_a_mask_holds_the_channels_of_its_resolutions(editor: Editor) -> None:
    assert resolution_mask(editor.model, None).all()
    np.testing.assert_array_equal(np.flatnonzero(resolution_mask(editor.model, "8-")), np.arange(LOW, S))
    np.testing.assert_array_equal(np.flatnonzero(resolution_mask(editor.model, "-4")), np.arange(LOW))
    with pytest.raises(InputError, match="there is no layer of resolutions 16-; the generator has 4, 8"):
        resolution_mask(editor.model, "16-")


@pytest.mark.parametrize("beta", [0.0, 0.05, "auto"])
@pytest.mark.parametrize("resolutions", ["8-", "4"])
def test_a_range_is_a_table_without_the_other_rows(editor: Editor, photo, resolutions: str, beta: Any) -> None:
    """Threshold, "auto" and the unit of alpha all follow from the rows that are left."""
    result = editor.edit(photo, "purple hair", alpha=2, beta=beta, resolutions=resolutions)
    fake, mask = editor.bundle, resolution_mask(editor.model, resolutions)
    delta_t = editor.text.delta_t(editor.model.prompts["purple-hair"])
    rows = fake.table * mask[:, None]
    settled = edits.suggested_beta(edits.relevance(rows, delta_t)) if beta == "auto" else beta
    delta_s = edits.direction(rows, delta_t, settled, fake.sigma)
    assert np.any(delta_s)
    np.testing.assert_allclose(result.delta_s, delta_s, atol=1e-6)
    np.testing.assert_array_equal(result.channels, np.flatnonzero(delta_s))
    expected = fake.run("synthesize_u8", s=edits.apply(editor.styles(result.w), delta_s, 2))["image_u8"][0]
    np.testing.assert_allclose(np.asarray(result.image, int), expected, atol=1)
    assert (result.steps[0].resolutions, result.beta) == (resolutions, pytest.approx(settled))


def test_the_recommended_layers_are_taken_and_can_be_overruled(editor: Editor, photo) -> None:
    assert set(editor.edit(photo, "glasses", beta=0).channels) <= set(range(LOW, S))
    assert set(editor.edit(photo, "glasses", beta=0, resolutions="4").channels) <= set(range(LOW))
    whole = editor.edit(photo, "glasses", beta=0, resolutions="all")
    assert whole.steps[0].resolutions is None
    assert len(whole.channels) == CONV
    assert editor.bundle.runs["edit_global"] == 1, "only the edit of all layers is one graph"


def test_each_prompt_and_direction_has_its_own_layers(editor: Editor, photo) -> None:
    result = editor.edit(photo, ["purple hair", "glasses"], beta=0, direction="age", resolutions=["4", None, "8"])
    assert [step.resolutions for step in result.steps] == ["4", "8-", "8"]
    low, high, named = result.delta_s
    assert not low[LOW:].any()
    assert not high[:LOW].any()
    np.testing.assert_array_equal(named, np.where(resolution_mask(editor.model, "8"), editor.named.table[0], 0))


def test_a_named_direction_without_channels_there_is_an_error(editor: Editor, photo) -> None:
    with pytest.raises(InputError, match="direction 'low' moves nothing in resolutions 8-; widen the range"):
        editor.edit(photo, direction="low", resolutions="8-")


def test_what_leaves_no_channel_names_the_layers(editor: Editor, photo) -> None:
    with pytest.raises(
        InputError, match=r"beta 0.99 leaves no channel for .* in resolutions 8-: the largest relevance"
    ):
        editor.edit(photo, "purple hair", beta=0.99, resolutions="8-")
    editor.bundle.table[LOW:] = 0
    with pytest.raises(InputError, match=r"no style channel in resolutions 8- answers to .*; widen the range"):
        editor.edit(photo, "purple hair", resolutions="8-", beta="auto")


def test_a_mapper_takes_no_layers_and_needs_none(editor: Editor, photo) -> None:
    assert editor.edit(photo, "glasses", method="mapper").steps[0].resolutions is None
    with pytest.raises(InputError, match="layers it was trained for"):
        editor.edit(photo, "glasses", method="mapper", resolutions="8-")
    with pytest.raises(InputError, match="2 values of resolutions for 1 prompts or directions"):
        plan(editor.model, "glasses", resolutions=["8-", "4"])


def test_a_bundle_that_recommends_no_range_does_not_open(make_bundle, opened) -> None:
    prompts = {"glasses": {**PROMPTS["glasses"], "resolutions": "fine"}}
    with pytest.raises(BundleError, match=r"prompts\.glasses\.resolutions: resolutions 'fine': expected a range"):
        Editor.open(make_bundle("bad", prompts=prompts))


def test_sheets_keep_to_the_layers(editor: Editor, photo) -> None:
    w = editor.invert(editor.photo(photo))
    sheet = grids.beta_grid(editor, w, "purple hair", alphas=[0, 2], betas=[0], resolutions="8-")
    s = editor.styles(w)
    moved = np.ptp(np.concatenate([s, sheet.rows[0].styles]), axis=0)
    assert not moved[:LOW].any()
    assert moved[LOW:].any()
    rows = grids.prompt_grid(editor, w, ["purple hair", "glasses"], [2], 0, resolutions=["4", None]).rows
    assert [row.step.resolutions for row in rows] == ["4", "8-"]


def test_the_command_line_pairs_layers_with_prompts(run, photo_file) -> None:
    args = ("--prompt", "purple hair", "--resolutions", "-4", "--prompt", "glasses", "--resolutions", "all")
    out = json.loads(run("edit", photo_file, *args, "--json", "--out", "a.png").stdout)
    assert [prompt["resolutions"] for prompt in out["prompts"]] == ["-4", None]
    text = run("edit", photo_file, "--prompt", "glasses", "--out", "b.png").stdout
    assert "resolutions 8-)" in text
    sheet = run("edit", photo_file, "--prompt", "purple hair", "--resolutions", "8-", "--grid", "--beta", 0, "--json")
    assert json.loads(sheet.stdout)["rows"][0]["resolutions"] == "8-"
    bad = run("edit", photo_file, "--resolutions", "64-", "--out", "c.png")
    assert bad.exit_code == 2
    assert "error: there is no layer of resolutions 64-; the generator has 4, 8" in bad.stderr
    assert not Path("c.png").exists()
    two = run("edit", photo_file, "--prompt", "glasses", "--resolutions", "8", "--resolutions", "4")
    assert "2 values of --resolutions for 1 prompts: one has no prompt" in two.stderr

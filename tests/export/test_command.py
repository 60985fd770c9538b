from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from click.testing import CliRunner

from styleclip_rt.engines.errors import InputError
from styleclip_rt.export import command
from styleclip_rt.export.command import export_command
from styleclip_rt.export.prompts import make_plan
from styleclip_rt.runtime.training.pack import load_pack


@pytest.fixture
def pack(mini_pack):
    return load_pack(mini_pack)


@pytest.fixture(autouse=True)
def kernels_built(monkeypatch):
    """How often the kernels would have been built; the home of the other tests stays without them."""
    built = []
    monkeypatch.setattr(command, "make_beside", lambda: built.append("kernels"))
    return built


def run(*arguments, **environment):
    return CliRunner().invoke(export_command, [str(a) for a in arguments], env=environment)


def test_known_prompts_bring_their_settings_and_mapper(pack):
    plan = make_plan(pack, ["Bob cut", "glasses"])
    assert plan.default_prompt == "bob-cut"
    assert plan.mappers == ("bob-cut",)
    assert plan.prompts["bob-cut"]["alpha"] == 3.0
    assert plan.prompts["bob-cut"]["mapper"] == "mapper/bob-cut"
    assert plan.prompts["glasses"]["mapper"] is None


def test_free_text_is_compared_with_the_usual_neutral(pack):
    plan = make_plan(pack, ["a face with green hair"])
    entry = plan.prompts["a face with green hair"]
    assert next(iter(plan.prompts)) == plan.default_prompt == "a face with green hair"
    assert entry["target"] == "a face with green hair"
    assert entry["neutral"] == "a face"
    assert entry["alpha"] is None
    assert plan.mappers == ()
    assert make_plan(pack, ["x"], "a head").prompts["x"]["neutral"] == "a head"
    assert make_plan(pack, ["x"], "a head").prompts["bob-cut"]["neutral"] == "a face"


def test_no_prompt_takes_the_first_of_the_pack_without_mappers(pack):
    plan = make_plan(pack, [])
    assert plan.default_prompt == "bob-cut"
    assert plan.mappers == ()


@pytest.mark.parametrize("text", ["", "  ", "x" * 501, "a\nb"])
def test_unusable_texts_are_refused(pack, text):
    with pytest.raises(InputError):
        make_plan(pack, [text])


def test_a_dry_run_writes_nothing(mini_pack, tmp_path):
    result = run("--pack", mini_pack, "--prompt", "bob-cut", "--dry-run", "--json", STYLECLIP_RT_HOME=str(tmp_path))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["out"] == str(tmp_path / "bundles" / "mini-bob-cut")
    assert report["mappers"] == ["bob-cut"]
    assert list(tmp_path.iterdir()) == []
    assert "bob-cut" in run("--pack", mini_pack, "--dry-run").stdout


def test_a_part_pack_exports_what_it_allows_and_the_kernels_are_built_last(write_part_pack, tmp_path, kernels_built):
    folder = write_part_pack(["identity"])
    assert run("--pack", folder, "--dry-run").exit_code == 0
    assert run("--pack", tmp_path / "nowhere").exit_code != 0
    result = run("--pack", folder, "--out", tmp_path / "out", "--no-kernels")
    assert result.exit_code == 0, result.output
    assert "identify" in result.stdout
    assert "not exported: edit_global (the pack lacks generator, clip, statistics, directions)" in result.stdout
    assert f"bundle: {tmp_path / 'out'}" in result.stdout
    assert kernels_built == []
    again = run("--pack", folder, "--out", tmp_path / "out", "--json")
    assert again.exit_code == 0
    assert set(json.loads(again.stdout)["graphs"]) == {"identify"}
    assert kernels_built == ["kernels"]


def test_errors_have_their_exit_codes_and_no_traceback(tmp_path, mini_pack):
    result = run("--pack", tmp_path / "nowhere")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: no pack at")
    assert run("--pack", mini_pack, "--prompt", " ").exit_code == 2

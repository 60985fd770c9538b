"""A finished pack as the recipe's checkpoints: the same weights, nothing to train, and one stage done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from styleclip_rt.engines.errors import InputError
from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.training.demo import recipe, restart
from styleclip_rt.runtime.training.demo.clip_stage import train_clip
from styleclip_rt.runtime.training.demo.generator import PASSES, load_generator
from styleclip_rt.runtime.training.demo.identity_stage import train_identity
from styleclip_rt.runtime.training.demo.inverter_stage import train_inverter
from styleclip_rt.runtime.training.demo.judge import train_judge
from styleclip_rt.runtime.training.mapper import mapper_config, preset
from styleclip_rt.runtime.training.networks.mapper import LevelsMapper
from styleclip_rt.runtime.training.pack import Pack, PackWriter, load_pack

COMPONENTS = ("judge", "clip", "generator", "identity", "inverter", "statistics", "directions")


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack("toyfaces")


@pytest.fixture(scope="module")
def filled(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with everything that the shipped pack holds; not to be changed."""
    work = tmp_path_factory.mktemp("restart") / "work"
    taken, left = restart.checkpoints_from(pack, work)
    assert taken == [*COMPONENTS, *(f"mapper/{name}" for name in recipe.MAPPERS)]
    assert not left
    return work


def names(work: Path) -> set[str]:
    return {path.name for path in work.iterdir()}


def variant(pack: Pack, folder: Path, without: str = "", **configs: dict) -> Pack:
    """The pack without a component, or with components of another config."""
    with PackWriter(folder, "variant", base=pack.path) as writer:
        writer.components.pop(without, None)
        for name, config in configs.items():
            writer.add(name, pack.tensors(name), config)
    return load_pack(folder)


def test_the_pack_assembled_from_the_checkpoints_is_the_same_to_the_byte(pack, filled, tmp_path):
    again = load_pack(recipe.assemble(filled, tmp_path / "pack", {}))
    assert set(again.components) == set(pack.components)
    for name in pack.components:
        assert again.entry(name)["sha256"] == pack.entry(name)["sha256"], name
        assert again.config(name) == pack.config(name), name


def test_every_pass_and_stage_counts_as_finished(pack, filled):
    for plan in PASSES:
        state = torch.load(filled / f"{plan.name}.pt", weights_only=True)
        assert state["step"] > 100 * plan.steps
        assert state["optimizer"] is None
        assert state["ema"]["mapping_network.w_avg"].equal(pack.generator.mapping_network.w_avg)
    before = {path: path.stat().st_mtime_ns for path in filled.glob("*.*")}
    for train in (train_judge, train_clip, train_identity, train_inverter):
        assert json.loads(train(filled).read_text()) == {"taken_from": "toyfaces", "sha256": pack.sha256}
    recipe.run(filled, ("generator", "statistics", "directions", "settings"))
    assert {path: path.stat().st_mtime_ns for path in filled.glob("*.*")} == before


def test_a_mapper_goes_on_from_its_checkpoint(pack, filled):
    mapper = LevelsMapper(mapper_config(load_generator(filled), preset("glasses")))
    mapper.load_state_dict(torch.load(filled / "mapper-glasses.pt", weights_only=True)["ema"])
    w = torch.randn(1, 10, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mapper(w), pack.mapper("glasses")(w))
    assert load_pack(filled / "draft").mappers == ()


def test_the_prompts_are_those_of_the_pack_without_the_last_stage_s_part(pack, filled):
    prompts = json.loads((filled / "prompts.json").read_text())
    assert set(prompts) == set(pack.prompts)
    assert not any({"strength", "mapper"} & entry.keys() for entry in prompts.values())
    assert all(prompts[name].items() <= pack.prompts[name].items() for name in prompts)


def test_a_folder_with_files_is_refused_and_left_alone(pack, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pack.json").write_text("mine")
    with pytest.raises(InputError, match="is not empty; name a new folder, or leave out --from"):
        restart.checkpoints_from(pack, tmp_path / "work")
    assert names(tmp_path / "work") == {"pack.json"}


def test_a_table_made_otherwise_is_left_out_with_all_that_was_made_from_it(pack, tmp_path):
    other = variant(pack, tmp_path / "pack", directions={**recipe.DIRECTIONS, "images": 7})
    taken, left = restart.checkpoints_from(other, tmp_path / "work")
    assert left == {"directions": f"images is 7, the recipe has {recipe.DIRECTION_IMAGES}"}
    assert {"statistics", "mapper/glasses"} <= set(taken)
    assert not {"directions.done.pt", "prompts.json", "draft"} & names(tmp_path / "work")


def test_what_was_made_from_a_missing_generator_is_left_out(pack, tmp_path):
    taken, left = restart.checkpoints_from(variant(pack, tmp_path / "pack", without="generator"), tmp_path / "work")
    assert taken == ["judge", "clip", "identity"]
    assert set(left) == {"inverter", "statistics", "directions", *(f"mapper/{name}" for name in recipe.MAPPERS)}
    assert set(left.values()) == {"it was made with the generator"}
    assert not list((tmp_path / "work").glob("mapper*"))


def test_forgetting_removes_a_checkpoint_and_what_follows_from_it(tmp_path):
    for name in ("clip.pt", "clip.json", "tokenizer.json", "generator-64.pt", "generator-64-again.pt", "mapping.pt",
                 "generator.pt", "inverter-w.pt", "inverter.pt", "identity.pt", "statistics.pt", "directions.done.pt",
                 "settings.json", "prompts.json", "mapper-glasses.pt", "judge.pt"):  # fmt: skip
        (tmp_path / name).touch()
    for name in ("draft", "pack", "faces-60000-0-64"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pack.json").touch()
    assert restart.forget(tmp_path, "mappers") == ["mappers", "pack"]
    assert not {"mapper-glasses.pt", "pack"} & names(tmp_path)
    gone = restart.forget(tmp_path, "generator-64-again")
    assert gone[0] == "generator-64-again"
    assert {"generator", "inverter", "statistics", "directions", "settings", "mappers", "pack"} <= set(gone)
    kept = {"clip.pt", "clip.json", "tokenizer.json", "generator-64.pt", "mapping.pt", "inverter-w.pt", "identity.pt"}
    assert names(tmp_path) == kept | {"judge.pt", "faces-60000-0-64"}
    with pytest.raises(InputError, match=r"no checkpoint dance; expected some of: judge, clip, "):
        restart.forget(tmp_path, "dance")


def test_the_command_fills_forgets_and_trains_nothing_by_itself(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(recipe, "run", lambda work, stages, scale: ran.append((work, stages)) or work / "pack")
    work = str(tmp_path / "work")

    def train(*arguments: str):
        return CliRunner().invoke(cli, ["demo", "train", "--work", work, *arguments])

    assert train("--redo", "dance").exit_code == InputError.exit_code
    assert train("--from", "toyfaces").exit_code == 0
    assert not ran
    assert {"generator.pt", "mapper-glasses.pt", "draft"} <= names(Path(work))
    assert train("--from", "toyfaces").exit_code == InputError.exit_code
    result = train("--redo", "mappers")
    assert "to be made: mappers, pack" in result.output
    assert ran == [(Path(work), ())]
    assert not list(Path(work).glob("mapper-*"))

"""StyleCLIP's mappers: the published files against the published definition."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

sys.path.insert(0, str(Path(__file__).parent))

import writers_encoders as writers  # noqa: E402
from encoder_helpers import read  # noqa: E402

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.training.checkpoints import mappers  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.generators import generator_from_arrays  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.mappers import import_mapper, recognises  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.psp_files import compare_generators, generator_inside  # noqa: E402
from styleclip_rt.runtime.training.networks.mapper import MapperConfig, build_mapper  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402

KINDS = ["LevelsMapper", "SingleMapper", "FullStyleSpaceMapper", "WithoutToRGBStyleSpaceMapper"]
SMALL = {"stylegan_size": 16}  # 6 layers of w+, 8 entries of style space
SMALL_CHANNELS = (8, 8, 8, 6, 6, 6, 4, 4)


def network(imported):
    mapper = build_mapper(MapperConfig.from_dict(imported.config)).eval()
    mapper.load_state_dict(imported.content, strict=True)
    return mapper.requires_grad_(False)


def latents(kind, num_ws=18, width=512, channels=writers.STYLE_CHANNELS):
    shape = (3, sum(channels)) if "StyleSpace" in kind else (3, num_ws, width)
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32) * 1.3 + 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_published_definition_at_the_published_size(tmp_path, kind):
    file = writers.write_mapper(kind)
    source = read(tmp_path, file)
    assert recognises(source) == kind
    imported = import_mapper("mine", source, 18, 512)
    assert (imported.component, imported.format, imported.notes) == ("mapper/mine", kind, ())
    assert imported.config["description"] == "purple hair"
    x = latents(kind)
    ours, theirs = network(imported).delta(torch.from_numpy(x)).numpy(), writers.mapper_of(x, kind, file)
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(theirs).max() > 0.1
    if kind.startswith("Without"):
        torgb = np.split(ours, np.cumsum(writers.STYLE_CHANNELS)[:-1], axis=1)[1::3]
        assert len(torgb) == 9
        assert not any(entry.any() for entry in torgb)


@pytest.mark.parametrize("off", [("fine",), ("coarse",), ("medium", "fine"), ("coarse", "medium")])
def test_groups_that_are_off(tmp_path, off):
    file = writers.write_mapper("LevelsMapper", width=16, off=off)
    mapper = network(import_mapper("mine", read(tmp_path, file), 18, 16))
    x = latents("LevelsMapper", width=16)
    out = mapper.delta(torch.from_numpy(x)).numpy()
    assert np.abs(out - writers.mapper_of(x, "LevelsMapper", file)).max() < 1e-5
    bounds = {"coarse": slice(0, 4), "medium": slice(4, 8), "fine": slice(8, 18)}
    for group, span in bounds.items():
        assert out[:, span].any() == (group not in off)


def test_a_single_mapper_normalises_over_all_layers(tmp_path):
    """Its layers see each other: a change of the last layer of w+ moves the offset of the first."""
    mapper = network(import_mapper("mine", read(tmp_path, writers.write_mapper("SingleMapper", width=16)), 18, 16))
    x = torch.from_numpy(latents("SingleMapper", width=16))
    moved = x.clone()
    moved[:, 17] *= 3
    assert (mapper.delta(moved)[:, 0] - mapper.delta(x)[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_other_sizes_follow_from_the_file(tmp_path, kind):
    file = writers.write_mapper(kind, width=8, channels=SMALL_CHANNELS, opts=SMALL)
    imported = import_mapper("mine", read(tmp_path, file), 6, 8)
    assert [note for note in imported.notes if "fine has no layers" in note] == list(imported.notes)
    assert len(imported.notes) == (kind == "LevelsMapper")
    x = latents(kind, 6, 8, SMALL_CHANNELS)
    out = network(imported).delta(torch.from_numpy(x)).numpy()
    assert np.abs(out - writers.mapper_of(x, kind, file, SMALL_CHANNELS)).max() < 1e-5
    with PackWriter(tmp_path / "pack", "p") as writer:
        writer.add(imported.component, imported.content, imported.config)
    stored = load_pack(tmp_path / "pack").mapper("mine").delta(torch.from_numpy(x)).numpy()
    assert np.abs(out - stored).max() < 1e-2
    assert np.abs(stored).max() > 0.1


def test_options_may_be_a_namespace_or_absent(tmp_path):
    file = writers.write_mapper("LevelsMapper", width=8, off=("fine",))
    named = import_mapper("x", read(tmp_path, {**file, "opts": argparse.Namespace(**file["opts"])}), 18, 8)
    assert named.config["groups"] == {"coarse": True, "medium": True, "fine": False}
    assert named.notes == ()
    del file["opts"]
    bare = import_mapper("x", read(tmp_path, file), 18, 8)
    assert bare.config["groups"] == named.config["groups"]
    assert "holds no options" in bare.notes[0]
    plain = import_mapper("x", read(tmp_path, file["state_dict"]), 18, 8)
    assert all(torch.equal(plain.content[key], bare.content[key]) for key in bare.content)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("LevelsMapper", {"no_fine_mapper": True}, "option no_fine_mapper is True, but the file has such weights"),
        (
            "LevelsMapper",
            {"mapper_type": "SingleMapper"},
            "options say 'SingleMapper', its keys are those of a 'levels'",
        ),
        ("SingleMapper", {"work_in_stylespace": True}, "options say 'style', its keys are those of a 'single'"),
        ("LevelsMapper", {"stylegan_size": 512}, r"generator of 512 px \(16 layers\); the pack's has 18"),
    ],
    ids=["groups", "class", "space", "size"],
)
def test_options_that_contradict_the_keys_are_an_error(tmp_path, kind, options, message):
    with pytest.raises(PackError, match=message):
        import_mapper("x", read(tmp_path, writers.write_mapper(kind, width=8, opts=options)), 18, 8)


def test_a_group_that_options_want_and_the_file_lacks_is_an_error(tmp_path):
    file = writers.write_mapper("LevelsMapper", width=8, off=("fine",), opts={"no_fine_mapper": False})
    with pytest.raises(PackError, match="no_fine_mapper is False, but the file has no such weights"):
        import_mapper("x", read(tmp_path, file), 18, 8)


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    file = writers.write_mapper("LevelsMapper", width=8)
    state = file["state_dict"]
    state["mapper.fine_mapping.mapping.5.weight"] = torch.zeros(8, 8)
    state["mapper.medium_mapping.mapping.2.bias"] = torch.zeros(9)
    del state["mapper.course_mapping.mapping.4.bias"]
    with pytest.raises(PackError) as error:
        import_mapper("x", read(tmp_path, file), 18, 8)
    for part in (
        "not accounted for: mapper.fine_mapping.mapping.5.weight [8, 8]",
        "mapper.medium_mapping.mapping.2.bias is [9]",
        "missing: groups.coarse.layers.3.bias",
    ):
        assert part in str(error.value)


def test_a_mapper_of_another_width_or_layer_count_is_an_error(tmp_path):
    with pytest.raises(PackError, match=r"which does not give groups.coarse.layers.0.weight \[512, 512\]"):
        import_mapper("x", read(tmp_path, writers.write_mapper("LevelsMapper", width=8)), 18, 512)
    small = writers.write_mapper("FullStyleSpaceMapper", width=8, channels=SMALL_CHANNELS, opts={"stylegan_size": None})
    with pytest.raises(
        PackError, match=r"entries \[0, 1, 2, 3, 4, 5, 6, 7\] of style space; expected \[0, 1, 2, .* 25\]"
    ):
        import_mapper("x", read(tmp_path, small), 18, 8)


@pytest.mark.parametrize(
    "state",
    [
        {"mapper.course_mapping.fc_module_list.0.weight": torch.zeros(2, 2)},  # HairCLIP
        {"encoder.input_layer.0.weight": torch.zeros(2, 2)},
        {"mapper.mapping.mapping.1.weight": torch.zeros(2, 2), "mapper.mapper_0.mapping.1.weight": torch.zeros(2, 2)},
        {"mapper.mapper_99999999999999999999.mapping.1.weight": torch.zeros(2, 2)},
        {"mapper.mapper_0.mapping.1.weight": torch.zeros(2)},
    ],
    ids=["hairclip", "encoder", "two kinds", "index", "shape"],
)
def test_other_files_are_refused(tmp_path, state):
    with pytest.raises(PackError):
        import_mapper("x", read(tmp_path, {"state_dict": state}), 18, 2)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("bob-cut", "bobcut"),
        ("Bob cut", "bobcut"),
        ("bobcut", "bobcut"),
        ("purple-hair", "purple_hair"),
        ("Curly hair", "curly_hair"),
        ("hillary-clinton", "hilary_clinton"),
        ("hilary_clinton", "hilary_clinton"),
        ("Taylor Swift", "taylor_swift"),
        ("glasses", "glasses"),
        ("My Mapper", "my-mapper"),
    ],
)
def test_names(typed, name):
    assert mappers.component_name(typed) == name
    assert (mappers.published_name(typed) is not None) == (name in mappers.PUBLISHED)


def test_the_14_published_mappers():
    assert len(mappers.PUBLISHED) == 14
    spellings = [mappers.letters(text) for key, entry in mappers.PUBLISHED.items() for text in {key, *entry.aliases}]
    assert len({*spellings}) >= 14
    for key in mappers.PUBLISHED:
        assert mappers.published_name(key) == key
    without_fine = {key for key, entry in mappers.PUBLISHED.items() if "fine" not in entry.groups}
    assert without_fine == {"afro", "angry", "bobcut", "bowlcut", "curly_hair", "mohawk", "surprised"}
    assert mappers.prompt_entry("bobcut", {"description": "x"})["target"] == "a face with a bob-cut"
    assert mappers.prompt_entry("green_hair", {"description": "lime hair"})["target"] == "lime hair"
    assert mappers.prompt_entry("green_hair", {}) == {"target": "green hair", "neutral": "a face", "strength": 1.0}


def test_a_published_name_with_other_groups_is_noted(tmp_path):
    assert (
        import_mapper("afro", read(tmp_path, writers.write_mapper("LevelsMapper", width=8, off=("fine",))), 18, 8).notes
        == ()
    )
    notes = import_mapper("bob-cut", read(tmp_path, writers.write_mapper("LevelsMapper", width=8)), 18, 8).notes
    assert notes[0].startswith("bobcut is published with the groups coarse, medium; this file has coarse, medium, fine")
    notes = import_mapper("trump", read(tmp_path, writers.write_mapper("SingleMapper", width=8)), 18, 8).notes
    assert "published as a LevelsMapper" in notes[0]


@pytest.mark.parametrize("name", ["", "../up", "a/b", "é", "x" * 65])
def test_a_name_that_a_pack_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="mapper name"):
        import_mapper(name, read(tmp_path, writers.write_mapper("SingleMapper", width=8)), 18, 8)


@pytest.fixture
def generators(tmp_path):
    """(arrays of a small generator inside a mapper's file, tensors of the same generator in a pack)."""
    state = writers.write_generator()
    file = writers.write_mapper("SingleMapper", width=8, opts={"stylegan_size": 16})
    file["state_dict"] = {k: v for k, v in file["state_dict"].items() if k.startswith("mapper.")}
    file["state_dict"] |= {f"decoder.{key}": value for key, value in state.items()}
    source = read(tmp_path, file)
    import_mapper("x", source, 6, 8)
    return dict(generator_inside(source)), generator_from_arrays({k: v.numpy() for k, v in state.items()}, "x").content


def test_the_same_generator_inside_is_found_the_same(generators):
    inside, pack = generators
    assert compare_generators(inside, pack) is None
    nudged = {**pack, "synthesis.b8.conv0.weight": pack["synthesis.b8.conv0.weight"] * (1 + 1e-6)}
    assert compare_generators(inside, nudged) is None
    assert compare_generators(inside, {**pack, "mapping.w_avg": pack["mapping.w_avg"] + 1}) is None
    assert compare_generators(inside, {**pack, "mapping.fc0.weight": pack["mapping.fc0.weight"] + 1}) is None


def test_another_generator_inside_is_told_with_the_largest_difference(generators):
    inside, pack = generators
    weight = pack["synthesis.b8.conv0.weight"].clone()
    weight[0, 0, 0, 0] += 0.25 * weight.abs().max()
    found = compare_generators(inside, {**pack, "synthesis.b8.conv0.weight": weight})
    assert found.serious
    assert "1 tensors differ, synthesis.b8.conv0.weight most" in str(found)
    noise = {**pack, "synthesis.b16.conv1.noise_const": pack["synthesis.b16.conv1.noise_const"] + 1}
    found = compare_generators(inside, noise)
    assert not found.serious
    assert "other noise" in str(found)
    both = compare_generators(inside, {**noise, "synthesis.b8.conv0.weight": weight})
    assert both.serious


def test_a_generator_of_another_size_inside(generators):
    inside, pack = generators
    found = compare_generators(inside, {k: v for k, v in pack.items() if ".b16." not in k})
    assert found.serious
    assert "the pack has none" in str(found)
    wide = torch.zeros(9, *pack["synthesis.b8.conv0.weight"].shape[1:])
    assert "another" in str(compare_generators(inside, {**pack, "synthesis.b8.conv0.weight": wide}))
    with pytest.raises(PackError):
        compare_generators({"style.1.weight": np.zeros((2, 2), np.float32)}, pack)
    with pytest.raises(PackError, match="no weight"):
        compare_generators({**inside, "conv1.noise.weight": np.zeros((2, 2), np.float32)}, pack)

"""Whole packs from small files in the public layouts: what is recorded, what fits, and what leaves nothing behind."""

from __future__ import annotations

import hashlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

sys.path.insert(0, str(Path(__file__).parent))

import writers  # noqa: E402
import writers_encoders as files  # noqa: E402

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.archives import read_source  # noqa: E402
from styleclip_rt.runtime.templates import STYLECLIP_TEMPLATES  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.checks import misfits, verify_pack  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.generators import import_generator  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.importer import import_pack, recognised  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.preview import preview  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.request import Job, Request  # noqa: E402
from styleclip_rt.runtime.training.networks.clip import Clip  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack  # noqa: E402

SIZES = {"size": 16, "width": 12, "mapping": 2, "channels": {4: 8, 8: 6, 16: 4}}
CONVS = [8, 8, 6, 6, 4]
LAYERS = [8, 8, 8, 6, 6, 6, 4, 4]
EMBED = 10
CLIP_CONFIG = {
    "embed_dim": EMBED,
    "quick_gelu": True,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1},
}


def unit(rows: int, width: int = EMBED) -> np.ndarray:
    table = np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One file of every kind, all of one small model, and a pack with nothing but CLIP."""
    path = tmp_path_factory.mktemp("files")
    state = writers.write_rosinality(path / "generator.pt", **SIZES)
    inside = {f"decoder.{name}": torch.from_numpy(array) for name, array in state["g_ema"].items()}
    encoder = files.write_encoder(styles=6, widths=(4, 6, 8, 12), reduction=2, stylegan_size=16)
    torch.save(encoder, path / "inverter.pt")
    torch.save(files.write_identity(widths=(4, 6, 8, 12), reduction=2, embed=16), path / "identity.pth")
    mapper = files.write_mapper("LevelsMapper", width=12, off=("fine",), opts={"stylegan_size": 16})
    mapper["state_dict"] = {k: v for k, v in mapper["state_dict"].items() if k.startswith("mapper.")} | inside
    torch.save(mapper, path / "mapper.pt")
    np.save(path / "directions.npy", unit(sum(CONVS)))
    rng = np.random.default_rng(0)
    moments = [[rng.uniform(0.1, 1, n).astype(np.float32) for n in LAYERS] for _ in range(2)]
    (path / "statistics").write_bytes(pickle.dumps(moments))
    np.save(path / "w-samples.npy", rng.normal(size=(40, 12)).astype(np.float32))
    with PackWriter(path / "clip", "clip") as writer:
        writer.add("clip", Clip(CLIP_CONFIG).eval(), licence="MIT", source="test")
    return path


@pytest.fixture
def everything(folder, tmp_path) -> Request:
    return Request(
        out=tmp_path / "out" / "pack",
        generator=folder / "generator.pt",
        inverter=folder / "inverter.pt",
        identity=folder / "identity.pth",
        mappers={"Bob cut": folder / "mapper.pt"},
        directions=folder / "directions.npy",
        statistics=str(folder / "statistics"),
        base=str(folder / "clip"),
        name="small",
        licences={"generator": "CC0-1.0", "mapper": "MIT"},
    )


def test_a_whole_pack_records_where_everything_came_from(everything, folder):
    report = import_pack(everything)
    pack = load_pack(everything.out)
    wanted = {"clip", "generator", "inverter", "identity", "mapper/bobcut", "directions", "statistics"}
    assert set(pack.components) == wanted
    assert verify_pack(pack) == {}
    assert pack.name == "small"
    given = {
        "generator": "generator.pt",
        "inverter": "inverter.pt",
        "identity": "identity.pth",
        "directions": "directions.npy",
    }
    for component, name in {**given, "mapper/bobcut": "mapper.pt", "statistics": "statistics"}.items():
        origin, data = pack.entry(component)["origin"], (folder / name).read_bytes()
        assert origin["file"] == name
        assert (origin["sha256"], origin["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        assert origin["format"]
    assert pack.licences["generator"] == "CC0-1.0"
    assert pack.licences["mapper/bobcut"] == pack.licences["clip"] == "MIT"
    assert pack.licences["identity"] == "unknown"
    assert any("identity: its licence is unknown" in note for note in report.notes)
    assert pack.templates == list(STYLECLIP_TEMPLATES)
    assert pack.alignment == {"kind": "ffhq"}
    assert pack.prompts["bobcut"]["target"] == "a face with a bob-cut"
    assert str(folder) not in (everything.out / "pack.json").read_text()
    assert [path.name for path in everything.out.parent.iterdir()] == ["pack"]


def test_weights_are_stored_to_the_last_bit(everything, folder):
    import_pack(everything)
    stored = load_pack(everything.out).tensors("generator")
    for name, tensor in import_generator(read_source(folder / "generator.pt")).content.items():
        assert torch.equal(stored[name], tensor), name


def test_a_second_import_adds_to_the_pack_in_place(everything, folder):
    import_pack(replace(everything, directions=None, statistics=None, licences={}))
    out = everything.out
    import_pack(Request(out, base=str(out), directions=folder / "directions.npy", w_samples=folder / "w-samples.npy"))
    pack = load_pack(out)
    assert {"mapper/bobcut", "directions", "statistics"} <= set(pack.components)
    assert pack.statistics.config["convention"] == "tf"
    assert pack.statistics.config["samples"] == 40
    assert pack.name == "small"
    assert pack.prompts["bobcut"]["neutral"] == "a face"
    assert verify_pack(pack) == {}
    report = import_pack(Request(out, base=str(out), generator=folder / "generator.pt"))
    assert any("were made for the generator that was replaced" in note for note in report.notes)


def test_statistics_can_be_measured_on_import(folder, tmp_path):
    request = Request(tmp_path / "p", generator=folder / "generator.pt", statistics="compute:50", sigma="torch")
    config = load_pack(import_pack(request).pack.path).statistics.config
    assert (config["convention"], config["samples"]) == ("torch-cutoff8", 50)


@pytest.mark.parametrize("part", ["generator", "inverter", "identity"])
def test_a_pack_may_hold_one_part(everything, part, tmp_path):
    report = import_pack(Request(tmp_path / "one", **{part: getattr(everything, part)}))
    assert report.pack.components == (part,)
    assert verify_pack(report.pack) == {}


NAMES = {
    "generator": "generator.pt",
    "inverter": "inverter.pt",
    "identity": "identity.pth",
    "mapper": "mapper.pt",
    "directions": "directions.npy",
    "statistics": "statistics",
    "w-samples": "w-samples.npy",
}
KIND = {"w-samples": "statistics"}


@pytest.mark.parametrize("given", list(NAMES))
@pytest.mark.parametrize("option", ["generator", "clip", "inverter", "identity", "mapper", "directions", "statistics"])
def test_a_file_is_what_it_holds_whatever_its_option(folder, given, option):
    path = folder / NAMES[given]
    right = KIND.get(given, given)
    if option == right:
        assert recognised(Job(option, path), read_source(path))
        return
    if option == "generator" and given in ("mapper", "inverter"):
        pytest.skip("such a file holds a generator as well")
    with pytest.raises(PackError, match=rf"given with --{option}, but it is .*\(--{right}\)"):
        recognised(Job(option, path), read_source(path))


def refused(request: Request, error: type[Exception], match: str) -> None:
    """The import fails with this error, and nothing has appeared."""
    with pytest.raises(error, match=match):
        import_pack(request)
    assert not request.out.exists()
    assert not request.out.parent.exists() or not list(request.out.parent.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"generator": None, "base": None}, InputError, "needs a generator"),
        ({"statistics": "nowhere.pkl"}, InputError, "--statistics: there is no file"),
        ({"statistics": "compute:x"}, InputError, "expected a file, compute, or compute:N"),
        ({"sigma": "numpy"}, InputError, "expected one of tf, torch"),
        ({"name": "A pack"}, InputError, "--name"),
        ({"mappers": {"Ünfug": Path("x")}}, InputError, "there is no file"),
        ({"licences": {"judge": "MIT"}}, InputError, "--licence names judge"),
        ({"base": "nowhere"}, PackError, "no pack at"),
    ],
    ids=lambda value: "" if isinstance(value, (type, str)) else str(value),
)
def test_requests_that_cannot_be_met(everything, changes, error, match):
    refused(replace(everything, **changes), error, match)


def test_nothing_to_import(tmp_path):
    refused(Request(tmp_path / "x" / "pack"), InputError, "nothing to import")


def test_both_sources_of_statistics(everything, folder):
    refused(replace(everything, w_samples=folder / "w-samples.npy"), InputError, "both given")


def test_parts_of_different_models_are_refused_together(everything, tmp_path):
    torch.save(files.write_encoder(styles=8, widths=(4, 6, 8, 12), reduction=2), tmp_path / "e.pt")
    everything = replace(everything, licences={})
    refused(replace(everything, inverter=tmp_path / "e.pt", mappers={}), PackError, r"inverter gives w\+ \[8, 12\]")
    np.save(tmp_path / "d.npy", unit(33))
    refused(replace(everything, directions=tmp_path / "d.npy"), PackError, "the table belongs to another generator")
    np.save(tmp_path / "d.npy", unit(20, 11))
    refused(replace(everything, directions=tmp_path / "d.npy"), PackError, "it is another CLIP")
    writers.write_rosinality(tmp_path / "g.pt", **{**SIZES, "channels": {4: 8, 8: 6, 16: 3}})
    refused(replace(everything, generator=tmp_path / "g.pt", mappers={}), PackError, "this generator")


def test_the_generator_inside_a_mapper_must_be_the_packs(everything, tmp_path):
    writers.write_rosinality(tmp_path / "g.pt", **SIZES, seed=5)
    other = replace(everything, generator=tmp_path / "g.pt")
    refused(other, PackError, "trained with another generator .*--allow-other-generator")
    report = import_pack(replace(other, allow_other_generator=True))
    mapper = next(taken for taken in report.taken if taken.component == "mapper/bobcut")
    assert any("trained with another generator" in note for note in mapper.notes)


def test_an_older_pack_stays_when_an_import_fails(everything, tmp_path):
    import_pack(everything)
    before = (everything.out / "pack.json").read_bytes()
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(PackError, match=r"bad\.pt"):
        import_pack(replace(everything, identity=tmp_path / "bad.pt"))
    assert (everything.out / "pack.json").read_bytes() == before
    assert [path.name for path in everything.out.parent.iterdir()] == ["pack"]


def outcome(request: Request) -> str:
    """The message of an import that fails, "" for a sound pack; any other exception is raised."""
    try:
        assert verify_pack(import_pack(request).pack) == {}
    except (InputError, PackError) as error:
        return str(error) or "an error without a message"
    return ""


@pytest.mark.parametrize("option", ["generator", "inverter", "identity", "directions", "statistics"])
def test_damaged_files_end_in_one_clear_error(folder, tmp_path, option):
    """Cut anywhere, or with bytes flipped: an error of ours, or a pack that is sound because nothing was hit."""
    data = (folder / NAMES[option]).read_bytes()
    rng = np.random.default_rng(len(option))
    given = {} if option in ("inverter", "identity") else {"generator": folder / "generator.pt"}
    for case in range(8):
        broken = bytearray(data[: int(rng.integers(1, len(data)))] if case % 2 else data)
        for place in rng.integers(0, len(broken), 12 if case % 2 == 0 else 0):
            broken[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "broken").write_bytes(broken)
        value = str(tmp_path / "broken") if option == "statistics" else tmp_path / "broken"
        request = Request(tmp_path / f"out{case}", **{**given, option: value})
        assert bool(outcome(request)) != request.out.exists()
        assert not case % 2 or not request.out.exists(), "a file that was cut cannot be whole"


def test_a_preview_tells_what_an_import_does(everything, folder):
    told = preview(everything)
    assert not everything.out.exists()
    report = import_pack(everything)
    assert set(told["components"]) == set(report.pack.components)
    formats = {row["option"]: row["format"] for row in told["files"]}
    assert formats["mapper"] == "LevelsMapper"
    assert {row["sha256"] for row in told["files"]} == {taken.origin["sha256"] for taken in report.taken}
    with pytest.raises(PackError, match=r"given with --identity, but it is .*--generator"):
        preview(replace(everything, identity=folder / "generator.pt"))


def test_verify_names_everything_that_is_wrong(everything):
    import_pack(everything)
    for name in ("identity", "generator"):
        path = everything.out / f"{name}.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    faults = verify_pack(load_pack(everything.out))
    assert set(faults) == {"identity", "generator"}
    assert all("SHA-256" in fault for fault in faults.values())


def test_parts_that_do_not_fit_are_all_named(everything, tmp_path):
    import_pack(everything)
    with PackWriter(tmp_path / "bad", "bad", base=everything.out) as writer:
        writer.add("directions", {"delta_i_c": torch.zeros(9, 5)})
        writer.add("statistics", {"w_mean": torch.zeros(12), "s_mean": torch.zeros(3)})
    found = misfits(load_pack(tmp_path / "bad"))
    assert len(found) == 3
    assert "directions have 9 rows" in " ".join(found)
    assert "5 wide" in " ".join(found)
    assert "s_std" in " ".join(found)

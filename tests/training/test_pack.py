"""The pack format: round trip, names, and everything that a hostile or damaged pack may try."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("safetensors", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.training import swap  # noqa: E402
from styleclip_rt.runtime.training.networks.mapper import LevelsMapper, MapperConfig  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.pack import PackWriter, load_pack, save_pack  # noqa: E402
from styleclip_rt.runtime.training.pack_format import atomic_directory  # noqa: E402
from styleclip_rt.runtime.training.pack_writer import Component  # noqa: E402


def make_generator():
    torch.manual_seed(0)
    return Generator(GeneratorConfig(8, 4, 4, 1, {4: 8, 8: 8})).eval()


@pytest.fixture
def pack(tmp_path) -> Path:
    with PackWriter(tmp_path / "mini", "mini") as writer:
        writer.add("generator", make_generator(), licence="MIT", source="test")
        writer.add("mapper/bob-cut", LevelsMapper(MapperConfig(4, 4)))
        writer.templates = ["a photo of {}."]
        writer.prompts = {"bob-cut": {"target": "a face with a bob-cut", "neutral": "a face"}}
    return tmp_path / "mini"


def manifest(pack: Path) -> dict:
    return json.loads((pack / "pack.json").read_text())


def rewrite(pack: Path, **changes) -> None:
    (pack / "pack.json").write_text(json.dumps({**manifest(pack), **changes}))


def rewrite_entry(pack: Path, component: str, **changes) -> None:
    entries = manifest(pack)["components"]
    entries[component] |= changes
    rewrite(pack, components=entries)


def test_round_trip_gives_the_fp16_values_as_float32(pack):
    loaded, original = load_pack(pack), make_generator()
    assert loaded.components == ("generator", "mapper/bob-cut")
    assert loaded.mappers == ("bob-cut",)
    assert loaded.licences["generator"] == "MIT"
    assert loaded.prompts["bob-cut"]["neutral"] == "a face"
    assert loaded.generator.config == original.config
    for (name, ours), theirs in zip(loaded.generator.state_dict().items(), original.state_dict().values(), strict=True):
        assert ours.dtype == torch.float32
        expected = theirs.half().float() if theirs.ndim > 1 else theirs
        assert torch.equal(ours, expected), name
    assert not loaded.generator.training
    assert not any(p.requires_grad for p in loaded.generator.parameters())
    assert loaded.generator is loaded.generator
    assert loaded.mapper("bob-cut")(torch.randn(1, 4, 4)).shape == (1, 4, 4)


def test_stored_tensor_names_are_the_published_ones(pack):
    names = set(load_pack(pack).tensors("generator"))
    assert {"mapping.w_avg", "synthesis.b4.const", "synthesis.b8.conv0.affine.weight"} <= names


def test_a_part_pack_names_what_it_lacks(pack):
    with pytest.raises(PackError, match="no 'clip'; it holds generator, mapper/bob-cut"):
        _ = load_pack(pack).clip
    with pytest.raises(InputError, match=r"no mapper 'afro'.*bob-cut"):
        load_pack(pack).mapper("afro")


def test_a_base_pack_is_carried_over(pack, tmp_path):
    with PackWriter(tmp_path / "more", "more", base=pack) as writer:
        writer.add("statistics", {"w_mean": torch.zeros(4), "s_mean": torch.zeros(40), "s_std": torch.ones(40)})
    more = load_pack(tmp_path / "more")
    assert more.components == ("generator", "mapper/bob-cut", "statistics")
    assert more.manifest["components"]["generator"]["sha256"] == manifest(pack)["components"]["generator"]["sha256"]
    assert more.templates == ["a photo of {}."]
    assert more.statistics.s_std.shape == (more.generator.style_channels,)


def test_statistics_and_directions_must_fit_the_generator(pack, tmp_path):
    with PackWriter(tmp_path / "bad", "bad", base=pack) as writer:
        writer.add("statistics", {"w_mean": torch.zeros(4), "s_mean": torch.zeros(3)})
        writer.add("directions", {"delta_i_c": torch.zeros(3, 4)})
        writer.add("clip", {}, {"embed_dim": 4})
    bad = load_pack(tmp_path / "bad")
    with pytest.raises(PackError, match=r"\['s_mean', 's_std'\]"):
        _ = bad.statistics
    with pytest.raises(PackError, match=r"delta_i_c \[40, 4\]"):
        _ = bad.directions


def test_save_pack_in_one_call_replaces_an_older_pack(pack):
    save_pack(pack, "mini", {"generator": Component(make_generator())}, templates=["{}"])
    assert load_pack(pack).components == ("generator",)
    assert [path.name for path in pack.parent.iterdir()] == ["mini"]


def test_publishing_never_touches_a_folder_of_another_kind(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no pack\.json"):
        save_pack(tmp_path / "photos", "mini", {"generator": Component(make_generator())})
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"x"


def test_a_failed_write_leaves_the_old_pack_and_no_rubbish(pack):
    before = (pack / "pack.json").read_bytes()
    with pytest.raises(PackError, match="NaN or infinity"):
        save_pack(pack, "mini", {"statistics": Component({"s_std": torch.tensor([1.0, float("nan")])})})
    assert (pack / "pack.json").read_bytes() == before
    assert [path.name for path in pack.parent.iterdir()] == ["mini"]


def test_atomic_directory_vanishes_on_errors(tmp_path):
    def fail():
        with atomic_directory(tmp_path / "out", "pack.json") as folder:
            (folder / "half").write_text("written")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


# A folder in place of another ----------------------------------------------------------------------------------------

REPLACING = """
import os, signal, sys
from pathlib import Path
from styleclip_rt.runtime.training import swap
from styleclip_rt.runtime.training.pack_format import atomic_directory

target, killed, exchanges = Path(sys.argv[1]), sys.argv[2] == "killed", sys.argv[3] == "exchange"
if not exchanges:
    swap.exchange = lambda a, b: False
genuine = Path.rename

def rename(self, other):
    genuine(self, other)
    if killed and self == target:  # the old one is out of the way, the new one is not yet there
        os.kill(os.getpid(), signal.SIGKILL)

Path.rename = rename
print("ready", flush=True)
for number in range(1, 1_000_000):
    with atomic_directory(target, "pack.json") as folder:
        for name in ("pack.json", "weights"):
            (folder / name).write_text(str(number))
    if not killed and not exchanges:
        break
"""


def replacing(target: Path, *modes: str) -> subprocess.Popen[str]:
    target.mkdir(exist_ok=True)
    for name in ("pack.json", "weights"):
        (target / name).write_text("0")
    command = [sys.executable, "-c", REPLACING, str(target), *modes]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not swap.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system swaps no two folders in one step")
    target, found = tmp_path / "mine", set()
    for wait in (0.0, 0.011, 0.023, 0.037):
        process = replacing(target, "unharmed", "exchange")
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            assert (target / "pack.json").is_file()  # never a moment without
        process.kill()
        process.communicate()
        texts = {(target / name).read_text() for name in ("pack.json", "weights")}
        assert len(texts) == 1, "half of one, half of another"
        found |= texts
    assert len(found) > 1


def test_a_kill_between_two_renames_is_mended_by_the_next_start(pack, tmp_path):
    target = tmp_path / "mine"
    process = replacing(target, "killed", "renames")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    assert [path.read_text() for path in tmp_path.glob(".mine.*/old/weights")] == ["0"]
    with atomic_directory(target, "pack.json") as folder:
        assert (target / "weights").read_text() == "0", "put back before anything else"
        (folder / "weights").write_text("1")
    assert (target / "weights").read_text() == "1"

    aside = pack.parent / f".{pack.name}.abc" / "old"
    aside.parent.mkdir()
    pack.rename(aside)
    assert load_pack(pack).name == "mini"
    assert not aside.exists()


def test_without_an_exchange_a_failed_rename_puts_the_old_folder_back(pack, monkeypatch):
    genuine = Path.rename

    def rename(self, target):
        if self.name == "new":
            raise PermissionError(13, "Permission denied")
        return genuine(self, target)

    monkeypatch.setattr(swap, "exchange", lambda a, b: False)
    before = (pack / "pack.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(PermissionError):
            save_pack(pack, "mini", {"generator": Component(make_generator())})
    assert (pack / "pack.json").read_bytes() == before
    save_pack(pack, "mini", {"generator": Component(make_generator())})
    assert load_pack(pack).components == ("generator",)
    assert [path.name for path in pack.parent.iterdir()] == ["mini"]


def test_values_beyond_fp16_stay_float32(tmp_path):
    with PackWriter(tmp_path / "p", "p") as writer:
        writer.add("judge", {"big": torch.full((2, 2), 1e6), "labels": torch.arange(3)})
    judge = load_pack(tmp_path / "p").judge
    assert torch.equal(judge["big"], torch.full((2, 2), 1e6))
    assert judge["labels"].dtype == torch.int64


def test_a_file_is_that_of_safetensors_own_writer(tmp_path):
    from safetensors.torch import save_file

    from styleclip_rt.runtime.training.pack_writer import write_safetensors

    wide = torch.randn(3, 4)
    tensors = {"b.\u00e9": wide, "a": torch.randn(5), "n": torch.arange(3), "s": torch.tensor(2.0), "t": wide.T}
    stored = {name: (t.half() if t.ndim > 1 else t).contiguous() for name, t in tensors.items()}
    write_safetensors(tmp_path / "ours", tensors, "test")
    save_file(stored, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_safetensors(tmp_path / "exact", {"w": wide, "none": torch.zeros(0, 3)}, "test", exact=True)
    save_file({"w": wide, "none": torch.zeros(0, 3)}, tmp_path / "theirs")
    assert (tmp_path / "exact").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_all_misfits_are_listed_at_once(pack, tmp_path):
    tensors = load_pack(pack).tensors("generator")
    del tensors["mapping.w_avg"], tensors["synthesis.b4.const"]
    tensors["synthesis.b4.colour"] = torch.zeros(2)
    tensors["mapping.fc0.bias"] = torch.zeros(9)
    with PackWriter(tmp_path / "bad", "bad") as writer:
        writer.add("generator", tensors, manifest(pack)["components"]["generator"]["config"])
    with pytest.raises(PackError) as error:
        _ = load_pack(tmp_path / "bad").generator
    for part in (
        "missing: mapping.w_avg, synthesis.b4.const",
        "unknown: synthesis.b4.colour",
        "mapping.fc0.bias is [9]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/../../b", "", "C:\\x", None, "missing.bin"]
)
def test_a_path_out_of_the_pack_is_refused(pack, name):
    rewrite_entry(pack, "generator", file=name)
    with pytest.raises(PackError):
        _ = load_pack(pack).generator


def test_a_link_out_of_the_pack_is_refused(pack, tmp_path):
    file = pack / "generator.safetensors"
    file.rename(tmp_path / "outside.safetensors")
    file.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(PackError, match="link out of the pack"):
        load_pack(pack).verify()


def test_a_changed_byte_is_refused(pack):
    file = pack / "generator.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(PackError, match="SHA-256"):
        load_pack(pack).verify()


def test_a_truncated_file_is_refused(pack):
    file = pack / "generator.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(PackError, match="bytes"):
        load_pack(pack).verify()


@pytest.mark.parametrize("length", [1 << 62, 9 << 20, 5000])
def test_a_huge_header_is_refused_before_it_is_parsed(pack, length):
    import hashlib

    data = struct.pack("<Q", length) + b"{}" + b" " * 64
    (pack / "generator.safetensors").write_bytes(data)
    rewrite_entry(pack, "generator", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(PackError, match="header"):
        load_pack(pack).tensors("generator")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2"),
        ({"version": None}, "format version None"),
        ({"format": "zip"}, "not a styleclip-rt/pack"),
        ({"components": []}, "'components' is list"),
        ({"prompts": None}, "'prompts' is NoneType"),
        ({"name": "../up"}, "pack name"),
        ({"components": {"../up": {}}}, "misnamed"),
        ({"components": {"generator": {"config": []}}}, "not an object"),
    ],
    ids=str,
)
def test_a_malformed_manifest_is_refused(pack, changes, message):
    rewrite(pack, **changes)
    with pytest.raises(PackError, match=message):
        load_pack(pack)


@pytest.mark.parametrize("text", ["[]", "{", "\xff", "[" * 100_000, " " * (5 << 20)], ids=range(5))
def test_a_manifest_that_is_not_one_is_refused(pack, text):
    (pack / "pack.json").write_text(text, encoding="latin-1")
    with pytest.raises(PackError):
        load_pack(pack)


@pytest.mark.parametrize("config", [{}, {"resolution": 8, "channels": {"x": 1}}, {"resolution": 8, "channels": 3}])
def test_a_malformed_network_config_is_refused(pack, config):
    rewrite_entry(pack, "generator", config=config)
    with pytest.raises(PackError, match="generator config"):
        _ = load_pack(pack).generator


def test_an_unknown_name_lists_the_shipped_packs():
    with pytest.raises(PackError, match="no pack at 'nowhere'"):
        load_pack("nowhere")

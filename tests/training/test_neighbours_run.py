"""`train neighbours` as a whole: what is refused before the work, and from the shipped pack to an edit by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.export.directions import write_directions  # noqa: E402
from styleclip_rt.runtime import cli, store  # noqa: E402
from styleclip_rt.runtime.training import neighbours, neighbours_stylespace  # noqa: E402
from styleclip_rt.runtime.training.named import read  # noqa: E402
from styleclip_rt.runtime.training.neighbours_interfacegan import boundary  # noqa: E402
from styleclip_rt.runtime.training.pack import load_pack  # noqa: E402
from styleclip_rt.runtime.training.texts import PackTexts  # noqa: E402

FACES = neighbours.Samples(768, 1.0)


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.cli, ["train", "neighbours", *map(str, args)])


def last_channel() -> int:
    """The channel of the last convolution that varies most."""
    pack = load_pack("toyfaces")
    layer = pack.layout.style_layers[-2]
    return int(pack.statistics.s_std[layer.offset : layer.offset + layer.channels].argmax())


def channel_name() -> str:
    return f"one-b64-conv1-{last_channel()}"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The shipped pack with two components and one channel."""
    out = tmp_path_factory.mktemp("made") / "pack"
    channel = ["stylespace", "--channel", f"b64.conv1:{last_channel()}", "--name", "one"]
    for options in (["ganspace", "--components", 2, "--samples", 1500], channel):
        base = out if out.exists() else "toyfaces"
        result = run("--method", *options, "--pack", base, "--out", out, "--faces", 1, "--alphas", "0,2", "--json")
        assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["ganspace", "--prompt", "glasses"], "--prompt does not go with --method ganspace"),
        (["stylespace", "--layers", "0-3", "--channel", "b8.conv1:3"], "--layers does not go with --method stylespace"),
        (["interfacegan"], "needs --prompt TEXT"),
        (["stylespace"], "--channel LAYER:INDEX"),
        (["stylespace", "--channel", "b8.conv1:3", "--prompt", "a hat"], "give one of the two"),
        (["stylespace", "--channel", "b8.conv1:999"], "the layer has 128 channels"),
        (["ganspace", "--layers", "3-99"], "the pack's w+ has rows 0-"),
        (["ganspace", "--name", "No Name"], "direction name"),
        (["interfacegan", "--prompt", "glasses", "--orthogonal-to", "smile"], "no such direction in the pack"),
        (["ganspace", "--components", 80, "--faces", 8], "a sheet of 640 x 5 cells"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, args, words):
    result = run("--method", *args, "--out", tmp_path / "new")
    assert result.exit_code in (InputError.exit_code, PackError.exit_code), result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_shipped_pack_is_not_changed():
    result = run("--method", "ganspace")
    assert result.exit_code == InputError.exit_code
    assert "name a new pack with --out" in result.stderr


def test_a_dry_run_writes_nothing(tmp_path):
    options = ["--method", "interfacegan", "--prompt", "glasses", "--out", tmp_path / "new", "--dry-run", "--json"]
    record = json.loads(run(*options).stdout)
    assert record["directions"] == ["interfacegan-glasses"]
    assert record["prompt"] == ["a face with glasses", "a face"]
    assert not list(tmp_path.iterdir())


def test_the_pack_holds_the_directions_beside_all_else(made):
    pack = load_pack(made)
    assert pack.directions_named == ("ganspace-0", "ganspace-1", channel_name())
    assert set(load_pack("toyfaces").components) <= set(pack.components)
    assert read(pack, "ganspace-0").config["sigma"] > read(pack, "ganspace-1").config["sigma"] > 0
    channel = read(pack, channel_name()).delta_s
    layer = pack.layout.style_layers[-2]
    assert channel.nonzero().tolist() == [[layer.offset + last_channel()]]
    assert float(channel[layer.offset + last_channel()]) == pytest.approx(
        float(pack.statistics.s_std[layer.offset + last_channel()])
    )
    assert Image.open(made.with_name("pack-work") / "ganspace.png").width > 200


def test_a_bundle_edits_along_them_as_the_networks_do(made, tmp_path):
    """The shipped bundle with the table of this pack: the graphs are the same, an export changes none of them."""
    import shutil

    from styleclip_rt.engines.bundle import sha256_of
    from styleclip_rt.runtime.editor import Editor

    pack, folder = load_pack(made), tmp_path / "bundle"
    shutil.copytree(store.DATA / "toyfaces-bundle", folder)
    manifest = json.loads((folder / store.MANIFEST).read_text()) | write_directions(folder, pack)
    table = folder / manifest["direction_table"]
    manifest["files"][table.name] = {"sha256": sha256_of(table), "bytes": table.stat().st_size}
    (folder / store.MANIFEST).write_text(json.dumps(manifest))
    with Editor.open(folder, device="cpu") as editor:
        editor.bundle.verify()
        assert editor.directions_named == pack.directions_named
        w = editor.sample([3])
        slider = editor.slider(w, direction=channel_name())
        assert slider.cut is not None, "a change of the last layers starts there"
        for name in editor.directions_named:
            result = editor.edit_latents(w, direction=name, alpha=4)
            torch_s = pack.generator.styles(torch.from_numpy(w)) + 4 * read(pack, name).delta_s
            with torch.no_grad():
                image = pack.generator.synthesize(torch_s)[0]
            expected = ((image.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
            assert np.abs(np.asarray(result.image).astype(int) - expected).max() <= 1
            assert np.abs(np.asarray(editor.edit_latents(w, direction=name, alpha=0).image) - expected).max() > 1
        alone = editor.edit_latents(w, direction=channel_name(), alpha=4).image
        assert np.abs(np.asarray(slider.at(4)).astype(int) - np.asarray(alone)).max() <= 1


def test_a_damaged_block_is_embedded_again(tmp_path, monkeypatch):
    pack, samples, calls = load_pack("toyfaces"), neighbours.Samples(6, 1.0), []
    monkeypatch.setattr(neighbours, "BLOCK", 4)
    genuine = neighbours.embed_styles
    monkeypatch.setattr(neighbours, "embed_styles", lambda pack, s: (calls.append(len(s)), genuine(pack, s))[1])
    w, first = neighbours.embedded(pack, samples, tmp_path)
    assert w.shape[0] == len(first) == 6
    assert calls == [4, 2]
    torch.testing.assert_close(first.norm(dim=1), torch.ones(6))
    again = neighbours.embedded(pack, samples, tmp_path)[1]
    assert calls == [4, 2], "all of it was kept"
    assert torch.equal(first, again)
    file = sorted(tmp_path.rglob("*.npy"))[1]
    file.write_bytes(file.read_bytes()[:40])
    assert torch.equal(neighbours.embedded(pack, samples, tmp_path)[1], first)
    assert calls == [4, 2, 2], "of the damaged block alone"
    neighbours.embedded(pack, neighbours.Samples(6, 1.0, seed=1), tmp_path)
    assert calls == [4, 2, 2, 4, 2], "other faces are kept apart"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    pack = load_pack("toyfaces")
    return pack, tmp_path_factory.mktemp("faces"), PackTexts(pack)


@pytest.mark.slow
def test_glasses_are_separated_in_w(scored):
    pack, work, texts = scored
    w, embeddings = neighbours.embedded(pack, FACES, work)
    found = boundary(w, embeddings @ texts.pair("a face with glasses", "a face").delta_t, 0.25)
    assert found.accuracy >= 0.8
    assert found.correlation > 0.5


@pytest.mark.slow
def test_the_channel_that_is_found_moves_the_text_more_than_others(scored):
    pack, work, texts = scored
    from styleclip_rt.runtime.prompts import Prompt

    prompt = Prompt("glasses", "a face with glasses", "a face")
    found = neighbours_stylespace.find_channels(pack, FACES, prompt, 2, share=0.05, work=work)
    delta_t = texts.pair(prompt.target, prompt.neutral).delta_t
    s = neighbours.styles_of(pack, neighbours.sampled_w(pack, neighbours.Samples(12, 1.0, seed=77)))  # other faces
    others = torch.tensor([5, 200, 460, 700, 1100])
    chosen = torch.tensor([channel.channel for channel in found])
    signs = torch.tensor([channel.sign for channel in found])
    sigma = neighbours_stylespace.channel_sigma(pack)
    gains = neighbours_stylespace.single_channel_gains(pack, s, delta_t, chosen, signs, sigma)
    rest = neighbours_stylespace.single_channel_gains(pack, s, delta_t, others, torch.ones(5), sigma)
    assert float(gains[0]) > float(rest.abs().max())
    assert float(gains[0]) > 0

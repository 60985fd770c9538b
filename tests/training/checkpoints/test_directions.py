"""Channel directions and style statistics from public files, against StyleCLIP's own formulas written out in numpy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.archives import Source, read_source  # noqa: E402
from styleclip_rt.runtime.edits import direction  # noqa: E402
from styleclip_rt.runtime.training.checkpoints import directions, statistics  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402

WIDTH = 7
CHANNELS = {4: 6, 8: 5, 16: 4, 32: 4, 64: 3}


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(64, 12, 10, 2, CHANNELS)).eval()
    with torch.no_grad():
        network.mapping_network.w_avg.normal_()
    return network


def sizes(generator: Generator, torgb: bool = True) -> list[int]:
    return [layer.channels for layer in generator.style_layers if torgb or layer.kind == "conv"]


def unit_rows(count: int, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def saved(path: Path, array: np.ndarray) -> Source:
    np.save(path, array)
    return read_source(path)


def pickled(path: Path, value: Any, protocol: int = 4) -> Source:
    path.write_bytes(pickle.dumps(value, protocol))
    return read_source(path)


def published_boundary(fs3, dt, threshold, code_std, shapes, mindexs):
    """GetBoundary and SplitS of StyleCLIP (global_directions/MapTS.py), as they read: one array per layer."""
    relevance = np.dot(fs3, dt)
    kept = relevance.copy()
    kept[np.abs(kept) < threshold] = 0
    kept = kept / np.abs(kept).max()
    parts, start = [], 0
    for i, size in enumerate(shapes):
        part = np.zeros(size)
        if i in mindexs:
            mine = kept[start : start + size]  # short or empty where the table ends
            part[: len(mine)] = mine
            start += size
        parts.append(part * code_std[i])
    return parts


@pytest.mark.parametrize("layers", [3, 7, 9], ids=lambda n: f"{n} convolutions")
@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_an_imported_prefix_edits_as_the_original_does(tmp_path, generator, layers, threshold):
    shapes = sizes(generator)
    rows = unit_rows(sum(sizes(generator, torgb=False)[:layers]))
    sigma = np.random.default_rng(1).uniform(0.1, 2, sum(shapes)).astype(np.float32)
    dt = unit_rows(1, seed=2)[0]
    part = directions.import_directions(saved(tmp_path / "fs3.npy", rows), generator, WIDTH)
    table = part.content["delta_i_c"].numpy()
    mindexs = [i for i, layer in enumerate(generator.style_layers) if layer.kind == "conv"]
    per_layer = np.split(sigma, np.cumsum(shapes)[:-1])
    expected = np.concatenate(published_boundary(rows, dt, threshold, per_layer, shapes, mindexs))
    np.testing.assert_allclose(direction(table, dt, threshold, sigma), expected, rtol=1e-5, atol=1e-6)


def test_a_full_size_layout_gives_the_published_offsets(tmp_path):
    """5376 and 6048 rows at 1024 px; the offsets are those of the published table."""
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    with torch.device("meta"):
        network = Generator(GeneratorConfig(1024, 512, 512, 8, channels))
    assert network.style_channels == 9088
    offsets = [0, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 4608, 5120, 5376, 5632, 5760, 5888, 5952, 6016, 6048]
    places = directions.conv_places(network)
    convs = [layer for layer in network.style_layers if layer.kind == "conv"]
    for layer, start, stop in zip(convs, offsets[:-1], offsets[1:], strict=True):
        assert places[start:stop].tolist() == list(range(layer.offset, layer.offset + stop - start))
    for rows, text in {6048: "all conv", 5376: "up to layer b128.conv1;", 5000: "ends inside layer b128.conv0"}.items():
        part = directions.import_directions(saved(tmp_path / "fs3.npy", unit_rows(rows, 4)), network)
        assert np.count_nonzero(part.content["delta_i_c"].any(1)) == rows
        assert text in part.notes[0]


def test_a_table_of_every_channel_is_taken_with_torgb(tmp_path, generator):
    table = unit_rows(generator.style_channels)
    part = directions.import_directions(saved(tmp_path / "all.npy", table), generator)
    assert np.array_equal(part.content["delta_i_c"].numpy(), table)
    assert "toRGB included" in part.notes[0]


def test_rows_that_are_no_numbers_never_move_and_are_counted(tmp_path, generator):
    rows = unit_rows(11)
    rows[3] = np.nan
    rows[5, 2] = np.inf
    source = saved(tmp_path / "fs3.npy", rows)
    assert directions.recognises(source) == directions.FORMAT
    part = directions.import_directions(source, generator)
    places = directions.conv_places(generator)
    assert not part.content["delta_i_c"][places[[3, 5]]].any()
    assert any("2 rows are not numbers" in note for note in part.notes)
    assert torch.isfinite(part.content["delta_i_c"]).all()


def test_rows_of_other_lengths_are_kept_and_said(tmp_path, generator):
    rows = unit_rows(11)
    rows[2] *= 3
    part = directions.import_directions(saved(tmp_path / "fs3.npy", rows.astype(np.float64)), generator)
    place = directions.conv_places(generator)[2]
    assert np.allclose(part.content["delta_i_c"][place], rows[2])
    assert any("1 rows are not of unit length (up to 3)" in note for note in part.notes)


@pytest.mark.parametrize(
    ("rows", "width", "embed", "message"),
    [(60, WIDTH, WIDTH, "belongs to another generator"), (11, WIDTH, 512, "it is another CLIP")],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, generator, rows, width, embed, message):
    with pytest.raises(PackError, match=message):
        directions.import_directions(saved(tmp_path / "fs3.npy", unit_rows(rows, width)), generator, embed)


def test_what_is_no_table_is_refused(tmp_path, generator):
    with pytest.raises(PackError, match="expected one table"):
        directions.import_directions(saved(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32)), generator)


# Statistics ----------------------------------------------------------------------------------------------------------


def published_styles(generator: Generator, w: np.ndarray) -> list[np.ndarray]:
    """S of w+ [N,L,W] by layer, from the affine maps alone."""
    styles = []
    for layer in generator.style_layers:
        affine = generator.layer(layer.name).affine
        weight = affine.weight.detach().numpy() / np.sqrt(w.shape[-1])
        styles.append(w[:, layer.w_index] @ weight.T + affine.bias.detach().numpy())
    return styles


def published_samples(generator: Generator, count: int, cutoff: int | None) -> tuple[np.ndarray, list[np.ndarray]]:
    """(W at psi .7, S by layer): z of RandomState(5), mapping, truncation of the first `cutoff` layers."""
    z = np.random.RandomState(5).randn(count, generator.config.z_dim).astype(np.float32)
    with torch.no_grad():
        w = generator.mapping(torch.from_numpy(z)).numpy()
    average = generator.mapping_network.w_avg.numpy()
    cut = average + 0.7 * (w - average)
    rows = [cut if cutoff is None or i < cutoff else w for i in range(generator.num_ws)]
    return cut, published_styles(generator, np.stack(rows, 1))


@pytest.mark.parametrize(("sigma", "cutoff", "name"), [("tf", None, "tf"), ("torch", 8, "torch-cutoff8")])
def test_measured_statistics_are_those_of_the_published_procedure(generator, sigma, cutoff, name):
    _, styles = published_samples(generator, 2300, cutoff)  # two whole batches and a part
    part = statistics.compute_statistics(generator, sigma, 2300)
    np.testing.assert_allclose(part.content["s_mean"], np.concatenate([s.mean(0) for s in styles]), atol=1e-5)
    np.testing.assert_allclose(part.content["s_std"], np.concatenate([s.std(0) for s in styles]), rtol=1e-4, atol=1e-6)
    assert part.config["convention"] == name
    assert (part.config["samples"], part.config["seed"]) == (2300, 5)


@pytest.mark.parametrize(("sigma", "cutoff"), [(None, None), ("tf", None), ("torch", 8)])
def test_w_samples_give_the_same_statistics(tmp_path, generator, sigma, cutoff):
    w, styles = published_samples(generator, 1500, cutoff)
    source = saved(tmp_path / "W.npy", w)
    assert statistics.recognises(source) == statistics.FORMATS["w"]
    part = statistics.import_statistics(source, generator, sigma)
    np.testing.assert_allclose(part.content["s_std"], np.concatenate([s.std(0) for s in styles]), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(part.content["w_mean"], w.mean(0), atol=1e-5)
    assert part.config["samples"] == 1500


SHAPES = {
    "flat": lambda a: a,
    "as TensorFlow keeps it": lambda a: a[None, None],
    "doubles": lambda a: a.astype(np.float64),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize(("cutoff", "name"), [(None, "tf"), (8, "torch-cutoff8")])
def test_moments_of_a_file_are_taken_and_their_convention_is_found(tmp_path, generator, shape, cutoff, name):
    _, styles = published_samples(generator, 3000, cutoff)
    mean, std = [s.mean(0) for s in styles], [s.std(0) for s in styles]
    value = [[SHAPES[shape](a) for a in mean], [SHAPES[shape](a) for a in std]]
    source = pickled(tmp_path / "S_mean_std", value, protocol=2)
    assert statistics.recognises(source) == statistics.FORMATS["moments"]
    part = statistics.import_statistics(source, generator)
    np.testing.assert_allclose(part.content["s_mean"], np.concatenate(mean), rtol=1e-6)
    np.testing.assert_allclose(part.content["s_std"], np.concatenate(std), rtol=1e-6)
    assert np.array_equal(part.content["w_mean"], generator.mapping_network.w_avg)
    assert part.config["convention"] == name
    assert part.notes == ()


def test_samples_of_s_are_reduced_with_ddof_0(tmp_path, generator):
    _, styles = published_samples(generator, 2000, None)
    names = [layer.name for layer in generator.style_layers]
    part = statistics.import_statistics(pickled(tmp_path / "S", [names, [s[:, None] for s in styles]]), generator)
    np.testing.assert_allclose(part.content["s_std"], np.concatenate([s.std(0) for s in styles]), rtol=1e-6)
    assert part.config["samples"] == 2000
    assert part.format == statistics.FORMATS["samples"]


def test_tables_without_torgb_are_accepted(tmp_path, generator):
    _, styles = published_samples(generator, 1000, None)
    convs = [s for s, layer in zip(styles, generator.style_layers, strict=True) if layer.kind == "conv"]
    value = [[s.mean(0) for s in convs], [s.std(0) for s in convs]]
    part = statistics.import_statistics(pickled(tmp_path / "S_mean_std", value), generator)
    places = directions.conv_places(generator)
    np.testing.assert_allclose(part.content["s_std"].numpy()[places], np.concatenate(value[1]), rtol=1e-6)
    assert np.count_nonzero(part.content["s_std"]) == len(places)


def test_foreign_sigmas_are_said_and_a_stated_convention_is_recorded(tmp_path, generator):
    _, styles = published_samples(generator, 1000, None)
    value = [[s.mean(0) for s in styles], [3 * s.std(0) for s in styles]]
    source = pickled(tmp_path / "S_mean_std", value)
    part = statistics.import_statistics(source, generator)
    assert part.config["convention"] == "unknown"
    assert "another generator's or conv" in part.notes[0]
    stated = statistics.import_statistics(source, generator, "torch")
    assert stated.config["convention"] == "torch-cutoff8"
    honest = pickled(tmp_path / "other", [value[0], [s.std(0) for s in styles]])
    assert "look like tf" in statistics.import_statistics(honest, generator, "torch").notes[0]


def test_statistics_of_other_layers_or_numbers_are_refused(tmp_path, generator):
    rows = [np.ones(n, np.float32) for n in sizes(generator)]
    with pytest.raises(PackError, match="its 13 layers have"):
        statistics.import_statistics(pickled(tmp_path / "a", [rows[:-1], rows[:-1]]), generator)
    bad = [*rows[:-1], np.full(rows[-1].shape, np.nan, np.float32)]
    with pytest.raises(PackError, match="not finite"):
        statistics.import_statistics(pickled(tmp_path / "b", [rows, bad]), generator)
    with pytest.raises(PackError, match=r"expected w of at least 2 faces, \[N, 10\]"):
        statistics.import_statistics(saved(tmp_path / "W.npy", np.full((5, 9), 4.0)), generator)
    with pytest.raises(PackError, match="expected S_mean_std"):
        statistics.import_statistics(saved(tmp_path / "c.npy", np.ones(5, np.float32)), generator)
    with pytest.raises(InputError, match="expected one of tf, torch"):
        statistics.compute_statistics(generator, "numpy", 10)
    with pytest.raises(InputError, match="at least 2"):
        statistics.compute_statistics(generator, "tf", 1)


def test_tables_of_directions_and_of_w_are_told_apart(tmp_path, generator):
    w, _ = published_samples(generator, 30, None)
    sources = saved(tmp_path / "a.npy", unit_rows(30)), saved(tmp_path / "b.npy", w)
    assert [directions.recognises(source) for source in sources] == [directions.FORMAT, None]
    assert [statistics.recognises(source) for source in sources] == [None, statistics.FORMATS["w"]]

"""Channel directions beside the original's loop: both do the same work, and the rows follow from the samples."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="CLIP needs the extra 'torch'")

from click.testing import CliRunner  # noqa: E402

from styleclip_rt.benchmarks import directions_bench as bench  # noqa: E402
from styleclip_rt.benchmarks import directions_error  # noqa: E402
from styleclip_rt.benchmarks.directions_subject import Subject, spread  # noqa: E402
from styleclip_rt.benchmarks.directions_tables import error, speed  # noqa: E402
from styleclip_rt.engines.errors import InputError  # noqa: E402
from styleclip_rt.runtime.training import directions_predicted  # noqa: E402
from styleclip_rt.runtime.training.directions import DirectionRecipe, measure_directions  # noqa: E402
from styleclip_rt.runtime.training.directions_finite import base_faces, front_of  # noqa: E402
from styleclip_rt.runtime.training.directions_plain import plain_rows  # noqa: E402
from styleclip_rt.runtime.training.directions_predicted import FACES  # noqa: E402
from styleclip_rt.runtime.training.directions_stop import CHECKS  # noqa: E402
from styleclip_rt.runtime.training.networks.clip import Clip  # noqa: E402
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig  # noqa: E402
from styleclip_rt.runtime.training.statistics import StyleStatistics  # noqa: E402

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    """16 px, which CLIP sees at 8 px."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(16, 8, 8, 1, {4: 6, 8: 5, 16: 4})).eval().requires_grad_(False)
    clip = Clip(CLIP).eval().requires_grad_(False)
    many = generator.styles(base_faces(generator, 64, 0.7))
    return Subject("small", generator, clip, many.mean(0), many.std(0), many[:20].clone())


def test_the_race_has_a_row_for_every_layer_and_one_for_the_table(subject: Subject) -> None:
    rows = bench.race(subject, 1, 1)
    assert [row["layer"] for row in rows] == ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1", "table"]
    assert rows[-1]["channels"] == sum(row["channels"] for row in rows[:-1]) == 26
    for row in rows:
        assert row["times_faster"] == pytest.approx(row["original_ms"] / row["ours_ms"])
        assert row["ours_ms"] > row["sample_ms"] > 0
    weighted = sum(row["channels"] * row["ours_ms"] for row in rows[:-1]) / 26
    assert rows[-1]["ours_ms"] == pytest.approx(weighted)


def test_both_ways_give_the_same_rows_but_for_eight_bits(subject: Subject) -> None:
    """Pillow rounds, as the original does: rows agree in direction, not to the last digit.

    It clips too, which ours does not: the colours are muted, so that nothing is clipped.
    """
    generator = copy.deepcopy(subject.generator)
    for name, parameter in generator.named_parameters():
        if name.endswith(("torgb.weight", "torgb.bias")):
            parameter.mul_(0.3)
    subject = replace(subject, generator=generator)
    contest, moments, styles = bench.Race(subject, 64), (subject.mean, subject.std), subject.styles[:4]
    channels = [layer.offset + c for _, layer in subject.layers() for c in range(layer.channels)]
    original = plain_rows(contest.variant, contest.encode, styles, *moments, channels, sigmas=1.0)
    plain = plain_rows(generator.synthesize, subject.clip.encode_image, styles, *moments, channels, sigmas=1.0)
    assert original.shape == plain.shape == (26, 16)
    cosines = (original * plain).sum(1)
    assert cosines.min() > 0.95
    assert cosines.mean() > 0.99
    assert (original * plain.roll(1, 0)).sum(1).abs().mean() < 0.6, "rows of other channels are other rows"
    assert not torch.allclose(original, plain, atol=1e-4)
    image = 0.5 * torch.tanh(torch.randn(1, 3, 8, 8))
    assert (subject.clip.encode_image(image) * torch.nn.functional.normalize(contest.encode(image))).sum() > 0.999


def test_a_replay_is_what_a_run_with_that_tolerance_makes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions_predicted, "FACES", 32)  # gradients pay for 26 channels already
    tolerance, count = 0.02, 6  # all channels: as many probes as the replay takes for the table
    statistics = StyleStatistics(torch.zeros(8), subject.mean, subject.std, 64, 0.7)
    w = base_faces(subject.generator, 20, 0.7)
    recipe = DirectionRecipe(20, bench.SIGMAS, tolerance=tolerance)
    front = front_of(subject.clip)
    places = [layer.offset + c for _, layer in subject.layers() for c in spread(layer, count)]
    run = measure_directions(
        subject.generator, subject.clip.encode_image, statistics, w, recipe, front=front, channels=places
    )
    predictions = directions_error.slice_predictions(subject, tolerance)
    assert predictions is not None
    assert len(predictions.basis) == 26 // 8
    found = [
        directions_error.replay(delta, [layer.offset + c for c in spread(layer, count)], tolerance, predictions)
        for layer, delta in directions_error.image_differences(subject, count)
    ]
    torch.testing.assert_close(torch.cat([rows for rows, _ in found]).float(), run.rows[places], atol=1e-4, rtol=0)
    used = torch.cat([used for _, used in found])
    assert used.tolist() == run.images[places].tolist()
    assert used.min() < 20, "some stop"


def test_errors_are_smaller_where_the_tolerance_is(subject: Subject) -> None:
    rows = [row for row in directions_error.errors(subject, 2, (0.001, 0.05)) if row["layer"] == "table"]
    assert [row["tolerance"] for row in rows] == [0.001, 0.05]
    assert rows[0]["cosine_mean"] >= rows[1]["cosine_mean"]
    assert rows[0]["mean_images"] > rows[1]["mean_images"] >= CHECKS[0]
    assert rows[0]["measured"] == 10


def test_the_early_stop_divides_the_cost_layer_by_layer() -> None:
    layers = [{"layer": "a", "channels": 3, "original_ms": 10.0, "ours_ms": 1.0, "near_ms": 0.5},
              {"layer": "b", "channels": 1, "original_ms": 10.0, "ours_ms": 2.0, "near_ms": 1.0}]  # fmt: skip
    rows = [*layers, {"layer": "table", "channels": 4, "original_ms": 10.0, "ours_ms": 1.25, "near_ms": 0.625}]
    for row in rows:
        row |= {"times_faster": 10 / row["ours_ms"], "near_times_faster": 10 / row["near_ms"]}
    bench.with_early_stop(rows, {"a": 20.0, "b": 50.0}, 0.4, 100)  # 0.1 ms a channel and image for the gradients
    cheaper = [row["times_cheaper"] for row in rows]
    assert cheaper == pytest.approx([1000 / 30, 1000 / 110, 4000 / (3 * 30 + 110)])
    near = [row["near_times_cheaper"] for row in rows]
    assert near == pytest.approx([1000 / 20, 1000 / 60, 4000 / (3 * 20 + 60)])
    assert rows[-1]["mean_images"] == pytest.approx(27.5)


def test_images_of_a_network_without_rows_are_those_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "error.csv"
    path.write_text("tolerance,layer,mean_images\n0.01,a,20\n0.01,b,40\n0.01,table,30\n0.02,table,10\n")
    assert bench.read_stops(path, 0.01, ["a", "b"]) == {"a": 20.0, "b": 40.0}
    assert bench.read_stops(path, 0.01, ["a", "c"]) == {"a": 30.0, "c": 30.0}
    with pytest.raises(InputError, match=r"no rows of tolerance 0\.05"):
        bench.read_stops(path, 0.05, ["a"])


def test_the_time_of_the_gradients_counts_every_probe(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 ms forward and 1 ms a pass back, for all 20 images at once."""
    monkeypatch.setattr(bench, "embed", lambda *_: torch.zeros(20, 16))
    monkeypatch.setattr(bench, "pullbacks", lambda g, e, s, probes: iter(range(len(probes))))
    monkeypatch.setattr(bench, "timed", lambda call: (4.0, found) if torch.is_tensor(found := call()) else (1.0, found))
    assert bench.gradient_ms(subject, 7) == pytest.approx((4 * (1 + FACES / 100) + 7) / 20)


def test_the_command_writes_both_files_and_the_tables_read_them(
    tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "gradient_ms_apart", lambda *_: bench.gradient_ms(subject, 3))
    monkeypatch.setattr(bench, "pack_subject", lambda name, images: Subject("toyfaces", **_rest(subject)))
    for arguments in (["error", "--slice", "1", "--images", "20"], ["speed", "--slice", "1", "--rounds", "1"]):
        result = CliRunner().invoke(bench.main, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert error(tmp_path).count("\n") == 2 + len(directions_error.TOLERANCES)
    text = speed(tmp_path)
    assert "| toyfaces, table | 26 |" in text
    assert "speed --size 1024` writes the CSV" in text
    assert "error` writes the CSV" in error(tmp_path / "empty")


def _rest(subject: Subject) -> dict[str, object]:
    return {name: getattr(subject, name) for name in ("generator", "clip", "mean", "std", "styles")}

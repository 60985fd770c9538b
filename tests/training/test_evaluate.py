"""The measures against hand-made labels, and the whole evaluation on a pack of random weights."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from styleclip_rt.runtime.training import search
from styleclip_rt.runtime.training.demo import settings
from styleclip_rt.runtime.training.demo.evaluate import SWEEP_BETAS, Effort, evaluate, recommended, write_prompts
from styleclip_rt.runtime.training.demo.factors import ATTRIBUTES
from styleclip_rt.runtime.training.demo.judge import JudgeNet
from styleclip_rt.runtime.training.demo.scores import (
    TARGETS,
    frechet_distance,
    judged,
    lacking,
    outcome,
    psnr_db,
    visible,
)
from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig
from styleclip_rt.runtime.training.networks.clip import Clip
from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing
from styleclip_rt.runtime.training.networks.mapper import LevelsMapper, MapperConfig
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.outcomes import Labels
from styleclip_rt.runtime.training.pack import PackWriter, load_pack
from styleclip_rt.runtime.training.subject import Subject


def labels(**values: list[int]) -> Labels:
    n = len(next(iter(values.values())))
    return {name: np.array(values.get(name, [0] * n), np.int64) for name in ATTRIBUTES}


def style(name: str) -> int:
    return ATTRIBUTES["hair_style"].index(name)


def test_targets_are_attributes_of_the_recipe() -> None:
    assert len(TARGETS) == 12
    for attribute, value in TARGETS.values():
        assert value in ATTRIBUTES[attribute]
    assert settings.CANDIDATES.keys() == TARGETS.keys()


def test_hair_of_bald_and_covered_heads_is_not_visible() -> None:
    seen = visible(labels(hair_style=[style(s) for s in ("bald", "short", "short", "long")], hat=[0, 0, 1, 1]))
    assert seen["hair_color"].tolist() == [False, True, False, True]
    assert seen["hair_style"].tolist() == [True, True, False, True]
    assert seen["age"].all()


def test_faces_that_lack_the_target() -> None:
    found = labels(hair_style=[style("bald"), 1, 1, 1], hair_color=[0, 5, 0, 2])
    assert lacking(found, "purple-hair").tolist() == [False, False, True, True]


def test_outcome_counts_the_target_and_every_other_attribute() -> None:
    before = labels(hair_style=[1, 1, 1, 1])
    after = labels(hair_style=[1, 1, 1, style("bald")], glasses=[1, 1, 1, 0], age=[1, 0, 0, 0], hair_color=[0, 0, 3, 3])
    found = outcome("glasses", before, after)
    assert (found.faces, found.success) == (4, 0.75)
    assert found.others["age"] == 0.25
    assert found.others["hair_style"] == 0.25
    assert found.others["hair_color"] == pytest.approx(1 / 3)  # the face that became bald has no hair colour
    assert found.worst == ("hair_color", found.others["hair_color"])
    assert found.others_changed == pytest.approx((0.25 + 0.25 + 1 / 3) / 8)
    assert "glasses" not in found.others


def test_psnr() -> None:
    a = np.zeros((2, 3, 4, 4), np.float32)
    assert psnr_db(a, a + 0.2) == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr_db(a, a).tolist() == pytest.approx([100.0, 100.0])


def test_frechet_distance_of_shifted_and_scaled_gaussians() -> None:
    x = np.random.default_rng(0).standard_normal((5000, 6))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(6 * 4, rel=1e-6)
    variance = np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * variance + np.square(2 * x.mean(0)).sum(), rel=1e-6)


CLIP_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def write_tokenizer(path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    texts = [text for pairs in settings.CANDIDATES.values() for part in pairs for text in part]
    words = sorted({word for text in texts for word in text.replace("-", " - ").split()})
    table = {word: i for i, word in enumerate(["<bos>", "<eos>", "<pad>", "<unk>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks at 64 px, as small as they come."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("pack")
    generator = Generator(GeneratorConfig(64, 16, 16, 2, {4: 8, 8: 8, 16: 8, 32: 8, 64: 4}))
    table = torch.nn.functional.normalize(torch.randn(generator.style_channels, 32), dim=-1)
    with PackWriter(folder / "tiny", "tiny") as writer:
        writer.add("generator", generator)
        writer.add("clip", Clip(CLIP_CONFIG))
        tokens = {"bos": 0, "eos": 63, "pad": 2, "context_length": 16}  # a CLIP without eos_id pools the largest id
        writer.add("tokenizer", write_tokenizer(folder / "tokenizer.json"), tokens)
        writer.add("identity", ArcFace(ArcFaceConfig(64, 8, 4, ((4, 1), (8, 1)), 2)))
        writer.add("inverter", Encoder4Editing(E4EConfig(10, 16, 64, 4, ((4, 1), (8, 1), (8, 1)), 4, 8, 2, 5)))
        ones = torch.ones(generator.style_channels)
        moments = {"w_mean": torch.zeros(16), "s_mean": ones, "s_std": 0.3 * ones}
        writer.add("statistics", moments, {"psi": 1.0, "samples": 10, "convention": "random"})
        writer.add("directions", {"delta_i_c": table})
        writer.add("judge", JudgeNet())
        writer.add("mapper/glasses", LevelsMapper(MapperConfig(10, 16)))
        writer.templates = ["a photo of {}."]
    return folder / "tiny"


@pytest.fixture(scope="module")
def report(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("out")
    few = pytest.MonkeyPatch()
    few.setattr(search, "ALPHAS", (1.0, 3.0))
    few.setattr(search, "BETAS", (0.12, 0.3))
    few.setattr(search, "STRENGTHS", (1.0,))
    few.setattr(settings, "CANDIDATES", {name: (t, n[:1]) for name, (t, n) in settings.CANDIDATES.items()})
    try:
        prompts = evaluate(pack, out, effort=Effort(faces=6, unseen_renders=4, samples=48, choice=0.03))
    finally:
        few.undo()
    return out, prompts


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluation_writes_every_table(report: tuple[Path, dict]) -> None:
    out, prompts = report
    results = out / "benchmarks" / "results"
    rows = rows_of(results / "toyfaces-directions.csv")
    assert {row["prompt"] for row in rows} == set(TARGETS)
    assert len(rows) == 12 * (2 + len(SWEEP_BETAS))
    published = [row for row in rows if row["setting"] == "published"]
    assert all((row["alpha"], row["beta"]) == ("3.0", "0.12") for row in published)
    for name in ("mapper", "inversion", "samples"):
        assert rows_of(results / f"toyfaces-{name}.csv")
    assert prompts["glasses"]["mapper"] == "mapper/glasses"
    assert prompts["hat"]["mapper"] is None


def test_a_higher_beta_moves_no_more_channels(report: tuple[Path, dict]) -> None:
    rows = rows_of(report[0] / "benchmarks" / "results" / "toyfaces-directions.csv")
    for prompt in TARGETS:
        counts = [int(row["channels"]) for row in rows if row["prompt"] == prompt and row["setting"] == "sweep"]
        assert counts == sorted(counts, reverse=True)


def test_contact_sheets_hold_a_row_per_prompt(report: tuple[Path, dict]) -> None:
    for name in ("directions", "alpha3-beta0.12", "mapper", "samples"):
        with Image.open(report[0] / "docs" / "images" / f"toyfaces-{name}.jpg") as sheet:
            assert sheet.width > 6 * 64


def test_prompts_enter_the_pack(pack: Path, report: tuple[Path, dict], tmp_path: Path) -> None:
    with PackWriter(tmp_path / "copy", "copy", base=pack):
        pass
    copy = write_prompts(load_pack(tmp_path / "copy"), report[1])
    assert load_pack(copy).prompts == report[1]
    assert load_pack(copy).components == load_pack(pack).components


def test_no_edit_is_the_unedited_picture(pack: Path) -> None:
    subject = judged(load_pack(pack))
    faces = subject.faces(3, 0)
    delta_s = subject.direction("a face with glasses", "a face", 0.1)
    assert torch.equal(subject.edit(faces, delta_s, 0.0), faces.images)
    assert np.count_nonzero(delta_s) > 0


def test_a_killed_search_continues(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, memory = judged(load_pack(pack)), tmp_path / "settings.json"
    asked: list[str] = []

    def choose(_subject: Subject, prompt: str, *_args: object, **_named: object) -> settings.Setting:
        asked.append(prompt)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return settings.Setting(prompt, "a face", 1.0, 0.1)

    monkeypatch.setattr(settings, "choose", choose)
    with pytest.raises(KeyboardInterrupt):
        settings.choose_settings(subject, scale=0.03, memory=memory)
    chosen = settings.choose_settings(subject, scale=0.03, memory=memory)
    assert chosen.keys() == TARGETS.keys()
    assert len(asked) == 12 + 1


def test_settings_of_the_pack_are_reported_as_they_are(pack: Path, report: tuple[Path, dict], tmp_path: Path) -> None:
    with PackWriter(tmp_path / "copy", "copy", base=pack) as writer:
        writer.prompts = {name: {**row, "alpha": 1.25} for name, row in report[1].items()}
    chosen, _ = recommended(judged(load_pack(tmp_path / "copy")), Effort(choice=0.03))
    assert {setting.alpha for setting in chosen.values()} == {1.25}

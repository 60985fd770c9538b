"""The recognising stages of the recipe: losses by hand, sizes against the pack's budget, and a few real steps each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from styleclip_rt.runtime.training.demo import clip_stage, identity_stage, inverter_stage
from styleclip_rt.runtime.training.demo.augment import CLEAN, CONDITIONS, PIXELATED, augment, blur, soften
from styleclip_rt.runtime.training.demo.clip_report import CLASS_TEXTS, PROMPTS, effective_rank, ranking
from styleclip_rt.runtime.training.demo.clip_stage import ClipTraining, contrastive_loss, load_clip, train_clip
from styleclip_rt.runtime.training.demo.factors import ATTRIBUTES
from styleclip_rt.runtime.training.demo.generator import CONFIG as GENERATOR
from styleclip_rt.runtime.training.demo.generator import new_generator
from styleclip_rt.runtime.training.demo.judge import SIZES, Judge, JudgeNet, accuracy, attribute_loss, train_judge
from styleclip_rt.runtime.training.demo.vocabulary import Encoder, train_vocabulary
from styleclip_rt.runtime.training.loop import save_atomically

SMOKE = 0.002


def size_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder that the smoke runs share, so that their few faces are drawn once."""
    return tmp_path_factory.mktemp("work")


def test_augment_reports_its_damage_and_stays_in_range(pictures: Tensor) -> None:
    image, condition = augment(pictures.clone(), np.random.default_rng(0))
    assert image.shape == pictures.shape
    assert image.abs().max() <= 1
    assert set(condition.tolist()) == set(range(len(CONDITIONS)))
    assert (condition == CLEAN).mean() > 0.6
    pixelated = image[torch.from_numpy(condition == PIXELATED)]
    assert len(pixelated) > 0
    again, _ = augment(pictures.clone(), np.random.default_rng(0))
    assert torch.equal(image, again)


def test_blur_keeps_constants_and_soften_keeps_most(pictures: Tensor) -> None:
    flat = torch.full((2, 3, 16, 16), 0.3)
    assert torch.allclose(blur(flat, 1.2), flat, atol=1e-6)
    assert (soften(pictures, np.random.default_rng(0)) - pictures).abs().mean() < 0.1


def test_attribute_loss_ignores_what_a_picture_does_not_show() -> None:
    logits = torch.randn(4, sum(SIZES.values()), requires_grad=True)
    labels = {name: np.zeros(4, np.int64) for name in ATTRIBUTES}
    labels["hair_color"] = np.array([-1, -1, -1, 0])
    attribute_loss(logits, labels).backward()
    assert logits.grad is not None
    assert (logits.grad[:3, : SIZES["hair_color"]] == 0).all()
    assert (logits.grad[3, : SIZES["hair_color"]] != 0).any()


def test_judge_predicts_every_attribute(pictures: Tensor) -> None:
    judge = Judge(JudgeNet())
    probabilities, predicted = judge.probabilities(pictures.numpy()), judge.predict(pictures)
    assert set(predicted) == set(ATTRIBUTES)
    assert all(np.allclose(p.sum(1), 1, atol=1e-5) for p in probabilities.values())
    assert all((predicted[name] < len(values)).all() for name, values in ATTRIBUTES.items())
    assert accuracy(predicted, {**predicted, "hair_color": np.full(40, -1)} | predicted)["skin"] == 1.0


def test_networks_fit_the_packs_budget() -> None:
    assert size_of(JudgeNet()) <= 250_000
    assert size_of(ClipTraining(8).clip.model) <= 3_200_000
    assert size_of(identity_stage.IdentityTraining().net) <= 600_000
    assert size_of(inverter_stage.Encoder4Editing(inverter_stage.CONFIG)) <= 1_300_000


def test_contrastive_loss_leaves_true_captions_of_others_alone() -> None:
    match = torch.eye(4, dtype=torch.bool)
    perfect = torch.eye(4) * 60
    to_images, to_texts = contrastive_loss(perfect, match)
    assert to_images + to_texts < 1e-6
    match[0, 1] = True  # caption 1 is true of picture 0 as well
    shared = perfect.clone()
    shared[0, 1] = 60
    assert sum(contrastive_loss(shared, match)) < 1e-6
    assert sum(contrastive_loss(shared, torch.eye(4, dtype=torch.bool))) > 0.1


def test_short_token_rows_embed_like_full_ones(tmp_path: Path) -> None:
    encoder, model = Encoder(train_vocabulary(tmp_path, scale=0.1)), ClipTraining(8).eval()
    texts = ["a face with glasses", "purple hair"]
    with torch.no_grad():
        short = model.embed_texts(torch.from_numpy(encoder(texts)))
        full = model.clip.encode_text(torch.from_numpy(encoder(texts, full=True)))
    assert torch.allclose(short, full, atol=1e-5)


def test_prompts_and_class_texts_cover_the_attributes() -> None:
    assert {name: len(texts) for name, texts in CLASS_TEXTS.items()} == SIZES
    assert len(PROMPTS) == 12
    assert all(value in ATTRIBUTES[attribute] for _, attribute, value in PROMPTS.values())


def test_ranking_and_rank_by_hand() -> None:
    assert ranking(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == 1.0
    assert ranking(np.array([0.9, 0.2, 0.8, 0.1]), np.array([False, True, False, True])) == 0.0
    rows = np.random.default_rng(0).standard_normal((500, 3)) @ np.eye(3, 10)
    assert effective_rank(rows) == pytest.approx(3, abs=0.1)


def test_people_are_fixed_and_portraits_vary() -> None:
    crowd = identity_stage.people(3, 5)
    assert (crowd == identity_stage.people(3, 5)).all()
    assert np.abs(crowd).max() <= 1
    first, second = (identity_stage.portraits(crowd, np.random.default_rng(s)) for s in (0, 1))
    assert first.shape == (5, 3, 64, 64)
    assert (first - second).abs().mean() > 0.05


def test_psnr_of_a_known_error() -> None:
    target = torch.zeros(2, 3, 8, 8)
    assert inverter_stage.psnr_db(target + 0.2, target).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_judge_stage_runs_reports_and_is_not_repeated(work: Path) -> None:
    report = train_judge(work, scale=SMOKE)
    assert set(json.loads(report.read_text())["clean"]) == set(ATTRIBUTES)
    before = (work / "judge.pt").stat().st_mtime_ns
    assert train_judge(work, scale=SMOKE) == report
    assert (work / "judge.pt").stat().st_mtime_ns == before
    assert Judge.open(work).predict(torch.zeros(1, 3, 64, 64))["glasses"].shape == (1,)


@pytest.mark.slow
def test_clip_stage_runs_and_loads(work: Path) -> None:
    report = json.loads(train_clip(work, scale=SMOKE).read_text())
    assert set(report["prompts"]) == set(PROMPTS)
    clip = load_clip(work)
    assert clip.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, clip_stage.EMBED_DIM)
    assert (work / "tokenizer.json").exists()


@pytest.mark.slow
def test_identity_and_inverter_stages_run_and_load(work: Path) -> None:
    assert 0 <= json.loads(identity_stage.train_identity(work, scale=SMOKE).read_text())["auc"] <= 1
    assert identity_stage.load_identity(work)(torch.zeros(2, 3, 64, 64)).shape[0] == 2
    state = {"step": 0, "model": new_generator().state_dict(), "ema": None, "optimizer": None}
    save_atomically(state, work / "generator.pt")
    report = json.loads(inverter_stage.train_inverter(work, scale=SMOKE).read_text())
    assert report["psnr_db"] > 0
    w_plus = inverter_stage.load_inverter(work)(torch.zeros(2, 3, 64, 64))
    assert w_plus.shape == (2, GENERATOR.num_ws, GENERATOR.w_dim)

"""`styleclip-rt evaluate`: measures against sums by hand, scorers, the search for settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the evaluation needs the extra `torch`")


from styleclip_rt.benchmarks import evaluate, evaluate_methods, evaluate_recommend, evaluate_times  # noqa: E402
from styleclip_rt.benchmarks.evaluate_command import summary  # noqa: E402
from styleclip_rt.benchmarks.evaluate_methods import Ways  # noqa: E402
from styleclip_rt.engines.errors import InputError  # noqa: E402
from styleclip_rt.runtime.training import named, search  # noqa: E402
from styleclip_rt.runtime.training.inputs import sample  # noqa: E402
from styleclip_rt.runtime.training.named import NamedDirection  # noqa: E402
from styleclip_rt.runtime.training.optimize_settings import PUBLISHED, SMALL, OptimizeSettings  # noqa: E402
from styleclip_rt.runtime.training.outcomes import ClipScorer, Outcome, Panel  # noqa: E402
from styleclip_rt.runtime.training.pack import Pack, load_pack  # noqa: E402
from styleclip_rt.runtime.training.publish import publish  # noqa: E402
from styleclip_rt.runtime.training.subject import Edited, Faces, Moved, Subject  # noqa: E402
from styleclip_rt.runtime.training.texts import TextPair  # noqa: E402

# Scorers --------------------------------------------------------------------------------------------------------------

AXES = torch.eye(4)
"""A CLIP of four dimensions: hat, glasses, age, and what all pictures share."""
REFERENCE = torch.tensor([[h, g, a, 9.0] for h in (0, 2) for g in (0, 2) for a in (0, 2)])
"""Half of the unedited faces have each: mean 1, standard deviation 1, less the 9 that all share."""


def pair(axis: int) -> TextPair:
    return TextPair(AXES[axis], AXES[3])


def pictures(*rows: tuple[float, float, float]) -> torch.Tensor:
    """Pictures that are their own embedding, with what all share."""
    return torch.tensor([[*row, 9.0] for row in rows])


@pytest.fixture
def scorer() -> ClipScorer:
    attributes = {"hat": pair(0), "glasses": pair(1), "age": pair(2)}
    return ClipScorer(lambda x: x, REFERENCE, {"a-hat": pair(0), "some-glasses": pair(1)}, attributes)


def test_clip_sees_what_most_faces_lack(scorer: ClipScorer) -> None:
    labels = scorer.read(pictures((2.5, 0, 0), (0, 2.5, 2), (1.9, 1, 1)))
    assert scorer.lacking(labels, "a-hat").tolist() == [False, True, True]
    assert scorer.lacking(labels, "some-glasses").tolist() == [True, False, True]
    assert labels["clip: a-hat"] == pytest.approx([1.5, -1.0, 0.9])


def test_clip_counts_what_changed_but_not_what_was_asked_for(scorer: ClipScorer) -> None:
    before = scorer.read(pictures((0, 0, 0), (0, 2, 0), (0, 2, 2), (0, 0, 2)))
    after = scorer.read(pictures((3, 2, 0), (3, 2, 0.9), (0, 2, 2), (3, 0, 0)))
    found = scorer.outcome("a-hat", before, after)
    assert (found.faces, found.success) == (4, 0.75)
    assert found.others == {"glasses": 0.25, "age": 0.25}  # the hat itself is no collateral, 0.9 is no change
    assert scorer.related("a-hat") == ["hat"]
    assert found.others_changed == 0.25


def test_no_face_is_no_success(scorer: ClipScorer) -> None:
    nobody = scorer.read(torch.zeros(0, 4))
    assert scorer.outcome("a-hat", nobody, nobody) == Outcome(0, 0.0, {})


def test_a_panel_asks_the_first_that_knows(scorer: ClipScorer) -> None:
    hats = ClipScorer(lambda x: x, REFERENCE, {"a-hat": pair(2)}, {})
    hats.opinion = "hatter"
    panel = Panel([hats, scorer])
    assert [evaluate_methods.opinion(panel, name) for name in ("a-hat", "some-glasses")] == ["hatter", "CLIP"]
    assert panel.knows("some-glasses")
    assert not panel.knows("a beard")
    with pytest.raises(KeyError):
        panel.member("a beard")
    labels = panel.read(pictures((0, 3, 0)))
    assert panel.lacking(labels, "some-glasses").tolist() == [False]


# Measures -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack("toyfaces")


@pytest.fixture(scope="module")
def prompts(pack: Pack) -> list:
    return evaluate_methods.prompts_of(pack, ["glasses", "purple-hair"])


@pytest.fixture(scope="module")
def clip(pack: Pack) -> ClipScorer:
    return evaluate_methods.clip_scorer(pack, evaluate_methods.prompts_of(pack, ["glasses", "purple-hair", "hat"]))


@pytest.fixture(scope="module")
def subject(pack: Pack, prompts: list, clip: ClipScorer) -> Subject:
    return Subject(pack, evaluate_methods.scorer_of(pack, prompts, clip))


@pytest.fixture(scope="module")
def faces(subject: Subject) -> Faces:
    return subject.faces_of(sample(subject.pack, range(6)))


def test_prompts_by_name_by_text_and_all(pack: Pack) -> None:
    found = evaluate_methods.prompts_of(pack, ["a face with glasses", "glasses", "red hair"])
    assert [prompt.name for prompt in found] == ["glasses", "red-hair"]
    assert found[0].mapper == "glasses"
    assert found[0].strength == pack.prompts["glasses"]["strength"]
    assert (found[1].mapper, found[1].target) == (None, "red hair")
    assert [prompt.name for prompt in evaluate_methods.prompts_of(pack, [])] == list(pack.prompts)


def test_free_text_is_scored_by_clip_and_named_prompts_by_the_judge(pack: Pack) -> None:
    found = evaluate_methods.prompts_of(pack, ["glasses", "red hair"])
    scorer = evaluate_methods.scorer_of(pack, found, evaluate_methods.clip_scorer(pack, found))
    assert [evaluate_methods.opinion(scorer, prompt.name) for prompt in found] == ["judge", "CLIP"]


def test_a_row_is_what_a_sum_by_hand_gives(subject: Subject, clip: ClipScorer, prompts: list, faces: Faces) -> None:
    lacking = subject.lacking("glasses", faces)
    edit = evaluate_methods.mapper_edit(subject, prompts[0])
    row, images = evaluate.measure(subject, edit, lacking, clip)
    moved = edit.move(lacking, edit.alpha)
    assert moved.w is not None
    offset = [float(np.linalg.norm(part)) for part in (moved.w - lacking.w).numpy()]
    assert row["delta_w"] == pytest.approx(np.mean(offset), abs=2e-3)
    sigma = subject.pack.statistics.s_std.numpy()
    free = sigma > 1e-6 * sigma.max()
    steps = (moved.s - lacking.s).numpy()[:, free] / sigma[free]
    assert row["delta_s"] == pytest.approx(np.linalg.norm(steps, axis=1).mean(), abs=2e-3)
    before, after = (subject.clip.encode_image(x).numpy() for x in (lacking.images, images))
    text = subject.pair(prompts[0].target, prompts[0].neutral)
    assert row["clip_gain"] == pytest.approx(((after - before) @ text.target.numpy()).mean(), abs=2e-4)
    delta = after - before
    cosines = (delta @ text.delta_t.numpy()) / np.linalg.norm(delta, axis=1)
    assert row["clip_direction"] == pytest.approx(cosines.mean(), abs=2e-4)
    assert row["alpha"] == prompts[0].strength
    assert (row["faces"], row["scored_by"]) == (len(lacking), "judge")
    assert 0.5 < row["success"] <= 1


def test_no_edit_changes_nothing(subject: Subject, clip: ClipScorer, prompts: list, faces: Faces) -> None:
    lacking = subject.lacking("glasses", faces)
    still = replace(evaluate_methods.global_edit(subject, prompts[0]), alpha=0.0)
    row, images = evaluate.measure(subject, still, lacking, clip)
    assert torch.allclose(images, lacking.images, atol=1e-5)  # other batches: convolutions may round otherwise
    assert [row[key] for key in ("success", "others_changed", "clip_others", "delta_s")] == [0] * 4
    assert row["clip_gain"] == pytest.approx(0, abs=1e-5)
    assert row["identity_cosine"] == pytest.approx(1, abs=1e-4)
    assert row["delta_w"] is None


def test_comparison_lists_what_it_cannot_do(pack: Pack, clip: ClipScorer, faces: Faces) -> None:
    found = evaluate_methods.prompts_of(pack, ["glasses", "hat"])
    subject = Subject(pack, evaluate_methods.scorer_of(pack, found, clip))
    report = evaluate.compare(subject, found, Ways(("global", "mapper")), faces, clip)
    assert [(row["prompt"], row["method"]) for row in report.rows] == [
        ("glasses", "global"),
        ("glasses", "mapper"),
        ("hat", "global"),
    ]
    assert list(report.left_out) == ["hat, mapper"]
    assert "no mapper 'hat'" in report.left_out["hat, mapper"]
    assert {len(images) for images in report.sheet.values()} <= set(range(1, evaluate.SHEET_FACES + 1))
    assert "hat: before" in report.sheet
    assert "left out: hat, mapper" in summary(report)


def test_a_prompt_that_every_face_follows_is_left_out(
    subject: Subject, clip: ClipScorer, prompts: list, faces: Faces
) -> None:
    wearing = faces.take(np.flatnonzero(~subject.scorer.lacking(faces.labels, "glasses")))
    assert len(wearing) > 0
    report = evaluate.compare(subject, prompts[:1], Ways(("global",)), wearing, clip)
    assert not report.rows
    assert "show the target already" in report.left_out["glasses"]


def test_torgb_rows_make_a_second_table(subject: Subject, prompts: list) -> None:
    assert list(evaluate_methods.tables_of(subject)) == ["global"]  # the shipped table has convolutions alone
    generator, table = subject.generator, subject.directions.copy()
    torgb = next(layer for layer in generator.style_layers if layer.kind != "conv")
    table[torgb.offset] = table[0]
    both = evaluate_methods.tables_of(subject.with_directions(table))
    assert list(both) == ["global", evaluate_methods.CONV]
    assert not both[evaluate_methods.CONV].directions[torgb.offset].any()
    assert np.array_equal(both[evaluate_methods.CONV].directions, subject.directions)
    assert np.array_equal(both["global"].directions, table)
    found, _ = evaluate_methods.edits_of(subject.with_directions(table), prompts[0], Ways(("global",)))
    assert [edit.method for edit in found] == ["global", evaluate_methods.CONV]


def test_a_named_direction_is_served_as_edit_serves_it(
    pack: Pack, prompts: list, clip: ClipScorer, tmp_path: Path, faces: Faces
) -> None:
    size = pack.layout.style_channels
    ramp = torch.linspace(-1, 1, size)
    plain = NamedDirection("plain", 0.1 * torch.ones(size), None, {"method": "ganspace", "alpha": 2.0})
    texted = NamedDirection("texted", ramp, ramp, {"method": "gradient", "alpha": 3.0, "beta": 0.5})
    parts = named.components([plain, texted])
    mine = Pack(publish(pack, tmp_path / "mine", parts, kept=tmp_path / "unused"))
    subject = Subject(mine, evaluate_methods.scorer_of(mine, prompts, clip))
    found, reasons = evaluate_methods.edits_of(subject, prompts[0], Ways(("direction",)))
    assert not reasons
    assert [(edit.method, edit.alpha, edit.settings["beta"]) for edit in found] == [
        ("direction/plain", 2.0, None),
        ("direction/texted", 3.0, 0.5),
    ]
    moved = found[1].move(faces, 2.0).s - faces.s
    wanted = torch.where(ramp.abs() >= 0.5, ramp, 0.0)
    assert torch.allclose(moved, (2 * wanted).expand_as(moved), atol=1e-4)
    assert found[1].settings["channels"] == int((ramp.abs() >= 0.5).sum())
    assert torch.allclose(found[0].move(faces, 1.0).s - faces.s, torch.tensor(0.1), atol=1e-4)
    one = Ways(("direction",), directions=("plain",), alphas=(1.0, -2.0))
    assert [edit.label for edit in evaluate_methods.edits_of(subject, prompts[0], one)[0]] == [
        "direction/plain, alpha 1",
        "direction/plain, alpha -2",
    ]
    curve = evaluate.curves(subject, prompts[:1], one, faces.take(np.arange(2)))
    assert [row["alpha"] for row in curve] == list(
        evaluate.ALPHA_FACTORS
    )  # one curve a direction, from its first alpha
    none = evaluate_methods.edits_of(Subject(pack, subject.scorer), prompts[0], Ways(("direction",)))[1]
    assert "no named direction" in none["glasses, direction"]


def test_optimisation_may_see_fewer_faces_than_the_others(
    subject: Subject, clip: ClipScorer, prompts: list, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def still(pack: Pack, w: torch.Tensor, asked: str, settings: OptimizeSettings, neutral: str) -> list:
        seen.append(settings.steps)
        return [SimpleNamespace(s=s[None], w=x[None]) for s, x in zip(subject.generator.styles(w), w, strict=True)]

    monkeypatch.setattr(evaluate_methods, "optimize", still)
    ways = Ways(("global", "optimize"), presets=("default", "published"), optimize_faces=3)
    report = evaluate.compare(subject, prompts[:1], ways, faces, clip)
    few = subject.lacking("glasses", faces.take(np.arange(3)))
    every = subject.lacking("glasses", faces)
    assert 0 < len(few) < len(every)
    assert [(row["method"], row["faces"], row["of"]) for row in report.rows] == [
        ("global", len(every), 6),
        ("optimize", len(few), 3),
        ("optimize (published)", len(few), 3),
    ]
    assert seen == [SMALL.steps, PUBLISHED.steps]
    assert all(row["seconds_per_face"] > 0 for row in report.rows)
    assert list(report.sheet)[-1] == "glasses: optimize (published)"


def test_curves_run_over_alpha_beta_and_strength(subject: Subject, prompts: list, faces: Faces) -> None:
    few = faces.take(np.arange(4))
    rows = evaluate.curves(subject, prompts[:1], Ways(("global", "mapper", "optimize")), few)
    betas = {row["beta"] for row in rows if row["method"] == "global"}
    assert betas <= {min(1.0, round(prompts[0].beta * factor, 4)) for factor in evaluate.BETA_FACTORS}
    assert len(betas) >= 3  # two that move the same number of channels are one curve
    by_beta = {beta: [row for row in rows if row["beta"] == beta] for beta in betas}
    assert all([row["alpha"] for row in line] == sorted(row["alpha"] for row in line) for line in by_beta.values())
    counts = [by_beta[beta][0]["channels"] for beta in sorted(betas)]
    assert counts == sorted(set(counts), reverse=True)
    assert len([row for row in rows if row["method"] == "mapper"]) == len(evaluate.ALPHA_FACTORS)
    at_one = [row for row in rows if row["method"] == "mapper" and row["alpha"] == prompts[0].strength]
    assert at_one[0]["success"] >= rows[0]["success"]


class Offsets:
    """A subject whose mapper gives offsets that were written down."""

    def __init__(self, *rows: list[float]) -> None:
        self.rows = torch.tensor(rows)

    def mapped(self, faces: Faces, name: str, strength: float) -> Moved:
        return Moved(faces.s, faces.w + strength * self.rows[:, None])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([[1.0, 0], [3, 0], [0.5, 0]], 1.0), ([[1.0, 0], [0, 1]], 0.0), ([[1.0, 0], [1, 1]], 0.7071)],
    ids=["one direction", "at right angles", "45 degrees"],
)
def test_agreement_of_a_mapper_s_steps(rows: list[list[float]], expected: float) -> None:
    n = len(rows)
    empty = Faces(torch.randn(n, 1, 2), torch.zeros(n, 3), torch.zeros(n, 3, 4, 4), {}, None)
    found = evaluate.mapper_agreement(Offsets(*rows), ["x"], empty)  # type: ignore[arg-type]
    assert found[0]["mean_cosine"] == pytest.approx(expected, abs=1e-3)
    assert (found[0]["faces"], found[0]["space"]) == (n, "w+")


def test_one_face_has_no_agreement() -> None:
    one = Faces(torch.zeros(1, 1, 2), torch.zeros(1, 3), torch.zeros(1, 3, 4, 4), {}, None)
    assert evaluate.mapper_agreement(Offsets([1.0, 0]), ["x"], one) == []  # type: ignore[arg-type]


def test_times_are_ratios_within_a_round(
    subject: Subject, prompts: list, faces: Faces, monkeypatch: pytest.MonkeyPatch
) -> None:
    laps = iter([1.0, 3.0, 8.0, 2.0, 1.0, 5.0])  # rounds: global mapper | mapper global | global mapper
    monkeypatch.setattr(evaluate_times, "_seconds", lambda call: next(laps))
    rows = evaluate_times.edit_times(subject, prompts[0], Ways(("global", "mapper")), faces, rounds=3)
    assert [(row["method"], row["ratio"], row["median_ms"]) for row in rows] == [
        ("global", 1.0, 1000.0),
        ("mapper", 4.0, 5000.0),
    ]
    assert all(row["machine"] and row["date"] and row["rounds"] == 3 for row in rows)


def test_without_the_unit_there_are_no_times(subject: Subject, prompts: list, faces: Faces) -> None:
    assert evaluate_times.measure(subject, prompts, Ways(("mapper",)), faces) == []


# Recommended settings -------------------------------------------------------------------------------------------------


class Planned:
    """A subject whose outcome is a formula: the target wants alpha * kept channels = 12, others follow alpha."""

    neutral_wanted = "a face"
    block_resolutions = (4, 8, 16, 32, 64)
    directions = np.zeros((1, 1), np.float32)

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.worth: dict[str | None, float] = {None: 1.0}  # of a range of resolutions; 0.5 for all others

    def lacking(self, prompt: str, faces: list) -> PlannedFaces:
        return PlannedFaces(20)

    def relevance(self, target: str, neutral: str, resolutions: str | None = None) -> np.ndarray:
        return np.array([0.5, 0.15, 0.1])

    def direction(self, target: str, neutral: str, beta: float, resolutions: str | None = None) -> np.ndarray:
        text = 1.0 if neutral == self.neutral_wanted else 0.5
        return np.where(self.relevance(target, neutral) >= beta, text * self.worth.get(resolutions, 0.5), 0.0)

    def edit(self, faces: object, delta_s: np.ndarray, alpha: float) -> tuple:
        return (np.count_nonzero(delta_s), delta_s.max(), alpha)

    def compare(self, prompt: str, faces: object, edited: tuple) -> Edited:
        kept, text, alpha = edited
        success = max(0.0, 1 - abs(alpha * kept - 12) / 12) * text
        return Edited(Outcome(20, success, {"age": 0.01 * kept}), 0.9)


class PlannedFaces:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def take(self, index: np.ndarray) -> PlannedFaces:
        return PlannedFaces(len(index))


@pytest.fixture
def planned(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> Planned:
    monkeypatch.setattr(evaluate_recommend, "tables_of", lambda subject: {"global": subject})
    return Planned(pack)


def test_the_search_finds_the_planted_setting_and_text(planned: Planned, prompts: list) -> None:
    planned.neutral_wanted = "a person"
    found, reasons = evaluate_recommend.recommend(planned, prompts[:1], PlannedFaces(30), ["a person"], mappers=False)
    entry = found["glasses"]
    assert not reasons
    assert entry["neutral"] == "a person"
    kept = np.count_nonzero(planned.direction("", "", entry["beta"]))
    assert entry["alpha"] * kept == pytest.approx(12, rel=0.2)
    assert entry["merit"]["global"] > 0.7
    assert "strength" not in entry


@pytest.mark.parametrize(
    ("worth", "chosen"),
    [
        ({None: 1.0}, None),
        ({None: 0.8, "-8": 1.0, "16-": 0.9}, "-8"),
        ({None: 1.0, "-16": 1.0, "16-": 1.0, "32-": 0.6}, "16-"),  # level: the one that starts highest
        ({None: 1.0, "32-": 0.9}, None),
    ],
)
def test_the_search_finds_the_planted_range(
    planned: Planned, prompts: list, worth: dict, chosen: str | None, tmp_path: Path
) -> None:
    planned.worth = worth
    found, _ = evaluate_recommend.recommend(planned, prompts[:1], PlannedFaces(30), mappers=False)
    assert found["glasses"]["resolutions"] == chosen
    kept = evaluate_recommend.kept_choice(planned.pack, tmp_path / "mine", prompts, faces=8)
    written = load_pack(evaluate_recommend.write(planned.pack, tmp_path / "mine", found, {}, kept))
    assert evaluate_methods.prompts_of(written, ["glasses"])[0].resolutions == chosen
    assert evaluate_recommend.with_settings(prompts, found)[0].resolutions == chosen


def test_a_mapper_alone_gets_its_strength_and_nothing_else(
    planned: Planned, prompts: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(search, "choose", lambda *_, **__: pytest.fail("directions were not asked for"))
    monkeypatch.setattr(search, "choose_strength", lambda *_: 1.2)
    found, reasons = evaluate_recommend.recommend(planned, prompts[:1], PlannedFaces(30), directions=False)
    assert (found, reasons) == ({"glasses": {"merit": {}, "strength": 1.2}}, {})
    kept = evaluate_recommend.kept_choice(planned.pack, tmp_path / "mine", prompts, faces=8)
    written = load_pack(evaluate_recommend.write(planned.pack, tmp_path / "mine", found, {}, kept))
    assert written.prompts["glasses"] == {**planned.pack.prompts["glasses"], "strength": 1.2}


def test_ranges_lie_on_either_side_of_at_most_three_resolutions() -> None:
    assert search.ranges((4, 8, 16, 32, 64)) == ["16-", "-8", "32-", "-16"]
    assert search.ranges([2**k for k in range(2, 11)]) == ["16-", "-8", "64-", "-32", "256-", "-128"]
    assert search.ranges((4, 8)) == search.ranges((4, 8, 16)) == []


def test_thresholds_that_keep_the_same_channels_are_tried_once() -> None:
    assert search._thresholds(np.array([0.5, 0.15, 0.1])) == [0.09, 0.12, 0.16]
    assert search._thresholds(np.array([0.02, 0.01])) == [pytest.approx(0.02)]  # below all: StyleCLIP's rule
    assert search._thresholds(np.zeros(3)) == []


def test_a_text_without_channels_or_faces_is_an_error(subject: Subject, faces: Faces) -> None:
    dead = subject.with_directions(np.zeros_like(subject.directions))
    with pytest.raises(InputError, match="no style channel answers"):
        search.choose(dead, "glasses", faces, (("a face with glasses",), ("a face",)))
    wearing = faces.take(np.flatnonzero(~subject.scorer.lacking(faces.labels, "glasses")))
    with pytest.raises(InputError, match="show the target already"):
        search.choose(subject, "glasses", wearing, (("a face with glasses",), ("a face",)))


def test_settings_are_merged_into_the_pack(pack: Pack, prompts: list, tmp_path: Path) -> None:
    entry = {"target": "glasses", "neutral": "no", "alpha": 2.5, "beta": 0.2, "merit": {"global": 0.9}}
    kept = evaluate_recommend.kept_choice(pack, tmp_path / "mine", prompts, faces=8)
    written = load_pack(evaluate_recommend.write(pack, tmp_path / "mine", {"glasses": entry}, {}, kept))
    kept = {key: pack.prompts["glasses"][key] for key in ("mapper", "strength", "resolutions")}
    assert written.prompts["glasses"] == {**kept, "target": "glasses", "neutral": "no", "alpha": 2.5, "beta": 0.2}
    assert written.prompts["hat"] == pack.prompts["hat"]
    assert written.components == pack.components
    changed = evaluate_recommend.with_settings(prompts, {"glasses": entry | {"strength": 1.1}})
    assert (changed[0].alpha, changed[0].beta, changed[0].strength) == (2.5, 0.2, 1.1)
    assert changed[1] == prompts[1]


def test_notes_say_where_torgb_channels_do_harm_and_where_there_are_none(subject: Subject) -> None:
    entries = {
        "a": {"merit": {"global": 0.9, "global (conv)": 0.5}},
        "b": {"merit": {"global": 0.5, "global (conv)": 0.7}},
    }
    (advice,) = evaluate_recommend.table_notes(subject, {"a": {"merit": {"global": 0.9}}})
    assert "--channels all" in advice
    table = subject.directions.copy()
    torgb = next(layer for layer in subject.generator.style_layers if layer.kind != "conv")
    table[torgb.offset] = table[0]
    both = subject.with_directions(table)
    (harm,) = evaluate_recommend.table_notes(both, entries)
    assert "b (0.70 against 0.50)" in harm
    assert "a (" not in harm
    assert evaluate_recommend.table_notes(both, {"a": entries["a"]}) == []

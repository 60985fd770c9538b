"""The main path on a bundle in memory."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from styleclip_rt.engines.errors import BundleError, ImageError, InputError
from styleclip_rt.runtime import edits, images, store
from styleclip_rt.runtime.align import aligned_crop, face_square
from styleclip_rt.runtime.editor import Editor
from styleclip_rt.runtime.steps import plan

from .align_faces import landmarks, noise_photo, smooth_photo


def inverted(editor, photo: Image.Image) -> np.ndarray:
    return editor.synthesize(editor.styles(editor.invert(editor.photo(photo))))[0]


def test_an_edit_is_the_reference_maths_end_to_end(editor, photo):
    result = editor.edit(photo, "purple hair", alpha=3, beta=0.12)
    fake = editor.bundle
    w = fake.run("invert", image=images.pm1_from_image(photo))["w"]
    delta_t = editor.text.delta_t(editor.model.prompts["purple-hair"])
    delta_s = edits.direction(fake.table, delta_t, 0.12, fake.sigma)
    expected = fake.run("synthesize_u8", s=edits.apply(editor.styles(w), delta_s, 3))["image_u8"][0]
    np.testing.assert_allclose(np.asarray(result.image, int), expected, atol=1)
    np.testing.assert_array_equal(result.w, w)
    np.testing.assert_allclose(result.delta_s, delta_s, atol=1e-6)
    np.testing.assert_array_equal(result.channels, np.flatnonzero(delta_s))
    assert (result.prompt, result.alpha, result.beta) == ("a face with purple hair", 3, pytest.approx(0.12))
    assert list(result.timings) == ["decode", "invert", "text", "direction", "synthesize", "total"]
    assert result.timings["total"] >= max(v for k, v in result.timings.items() if k != "total")


def test_alpha_zero_gives_the_inverted_photo_back(editor, photo):
    for prompt in ("glasses", ["glasses", "purple hair"]):
        result = editor.edit(photo, prompt, alpha=0)
        np.testing.assert_array_equal(np.asarray(result.image), inverted(editor, photo))
    result = editor.edit(photo, "glasses", alpha=0, method="mapper")
    np.testing.assert_array_equal(np.asarray(result.image), inverted(editor, photo))


def test_one_prompt_is_one_call_of_the_fused_graph_and_nothing_else_is_loaded(editor, photo):
    editor.edit(photo, "glasses")
    assert dict(editor.bundle.runs) == {"invert": 1, "encode_text": 2, "direction": 1, "edit_global": 1}


def test_the_recommended_settings_and_the_default_prompt(editor, photo):
    result = editor.edit(photo)
    assert (result.prompt, result.alpha, result.beta) == ("a face with a bob-cut", 3.0, 0.04)


def test_free_text_starts_at_alpha_three_and_an_automatic_beta(editor, photo):
    result = editor.edit(photo, "a smiling portrait")
    assert result.alpha == 3.0
    assert result.beta == edits.suggested_beta(
        edits.relevance(editor.bundle.table, editor.text.delta_t(result.steps[0].prompt))
    )


def test_several_prompts_are_summed_in_style_space(editor, photo):
    result = editor.edit(photo, ["purple hair", "glasses"], alpha=[3, -2], beta=0.05)
    one, other = (editor.edit(photo, p, beta=0.05).delta_s for p in ("purple hair", "glasses"))
    s = editor.styles(result.w) + 3 * one - 2 * other
    np.testing.assert_allclose(np.asarray(result.image, int), editor.synthesize(s.astype(np.float32))[0], atol=1)
    assert result.delta_s.shape == (2, len(one))
    assert set(result.channels) == set(edits.channels(one)) | set(edits.channels(other))
    assert (result.alpha, result.beta) == ((3, -2), (0.05, 0.05))


def test_beta_too_high_names_the_largest_relevance_and_a_beta_that_works(editor, photo):
    with pytest.raises(InputError, match="largest relevance is 0") as caught:
        editor.edit(photo, "glasses", beta=1)
    workable = float(str(caught.value).split("Use beta ")[1].split(",")[0])
    assert editor.edit(photo, "glasses", beta=workable).beta == pytest.approx(workable)
    assert editor.edit(photo, "glasses", beta="auto").beta == pytest.approx(workable)


def test_a_higher_beta_moves_fewer_channels(editor, photo):
    counts = [len(editor.edit(photo, "glasses", beta=beta).channels) for beta in (0, 0.1, 0.2, 0.3)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 0


def test_a_mapper_edit(editor, photo):
    result = editor.edit(photo, "glasses", method="mapper")
    w = result.w + np.float32(0.8) * editor.bundle.run("mapper/glasses", w=result.w)["delta_w"]
    np.testing.assert_allclose(np.asarray(result.image, int), editor.synthesize(editor.styles(w))[0], atol=1)
    assert (result.alpha, result.beta) == (0.8, None)
    assert result.delta_s.shape == (editor.model.style_channels,)
    both = editor.edit(photo, ["glasses", "glasses"], alpha=0.4, method="mapper")
    np.testing.assert_allclose(np.asarray(both.image, int), np.asarray(result.image, int), atol=1)


def test_no_mapper_lists_the_ones_there_are(editor, photo):
    with pytest.raises(InputError, match="mappers: glasses"):
        editor.edit(photo, "bob-cut", method="mapper")


def test_identity_is_measured_when_asked_for(editor, photo):
    assert editor.edit(photo).identity is None
    assert -1 <= editor.edit(photo, identity=True).identity <= 1
    assert editor.identity(photo, photo) == pytest.approx(1)


def test_words_without_meaning_are_noted(editor, photo):
    assert editor.edit(photo, "glasses").notes == ()
    (note,) = editor.edit(photo, "a face with zebra glasses").notes
    assert "'zebra'" in note


def test_latents_take_the_place_of_a_photo(editor, photo):
    w = editor.invert(editor.photo(photo))
    for latents in (w, w[0], w.astype(np.float64)):
        result = editor.edit_latents(latents, "glasses")
        np.testing.assert_array_equal(np.asarray(result.image), np.asarray(editor.edit(photo, "glasses").image))


@pytest.mark.parametrize("shape", [(1, 4, 5), (4,), (2, 4, 6), (0, 4, 6)])
def test_latents_of_another_shape(editor, shape):
    with pytest.raises(InputError, match="latents"):
        editor.edit_latents(np.zeros(shape, np.float32))


def test_latents_that_are_not_finite(editor):
    with pytest.raises(InputError, match="finite"):
        editor.edit_latents(np.full((1, 4, 6), np.nan, np.float32))


def test_a_seed_gives_one_face_whatever_the_count(editor):
    many, one = editor.sample([3, 4, 5]), editor.sample([4])
    np.testing.assert_array_equal(many[1], one[0])
    assert not editor.sample([4], psi=0).any()
    assert np.array_equal(editor.sample([4]), editor.sample([4], psi=editor.model.psi))


@pytest.mark.parametrize(
    "settings",
    [{"alpha": float("nan")}, {"alpha": 101}, {"alpha": "much"}, {"beta": -0.1}, {"beta": 1.5}, {"beta": "big"},
     {"beta": float("nan")}, {"method": "magic"}, {"alpha": [1, 2]}, {"prompt": []}, {"neutral": ""},
     {"prompt": "a face"}, {"prompt": "glasses", "neutral": "a face with glasses"}],
    ids=str,
)  # fmt: skip
def test_settings_that_are_refused(editor, photo, settings):
    with pytest.raises(InputError):
        editor.edit(photo, **settings)


def test_a_bad_photo_is_an_image_error_before_anything_runs(editor):
    with pytest.raises(ImageError):
        editor.edit(b"no picture")
    assert not editor.bundle.runs


def test_plan_broadcasts_one_value(editor):
    steps = plan(editor.model, ["glasses", "bob-cut"], alpha=2, beta=[None, "auto"])
    assert [(s.alpha, s.beta) for s in steps] == [(2, 0.06), (2, "auto")]


def test_an_aligned_bundle_wants_to_know_where_the_face_is(make_bundle, opened, photo, monkeypatch):
    monkeypatch.delenv("STYLECLIP_RT_LANDMARKS", raising=False)
    aligned = Editor.open(make_bundle("aligned", alignment={"kind": "ffhq"}))
    with pytest.raises(InputError, match=r"--landmarks FILE.*--landmark-model FILE.*--no-align"):
        aligned.edit(photo, "glasses")
    result = aligned.edit(photo, "glasses", align=False)
    np.testing.assert_array_equal(np.asarray(result.frame.crop), np.asarray(photo))
    assert result.notes == ()


def test_a_bundle_without_clip_or_inverter_says_so(make_bundle, opened, photo):
    w = np.zeros((1, 4, 6), np.float32)
    with pytest.raises(BundleError, match="no text encoder"):
        Editor.open(make_bundle("mute", tokens=None, tokenizer=None)).edit_latents(w, "glasses")
    model = {**Editor.open(make_bundle("full")).bundle.manifest["model"], "invert_size": None}
    with pytest.raises(BundleError, match="no inverter"):
        Editor.open(make_bundle("blind", model=model)).edit(photo)


def test_the_editor_closes_its_bundle(bundle_folder, opened):
    with Editor.open(bundle_folder):
        assert not opened[0].closed
    assert opened[0].closed


# The bundle store -----------------------------------------------------------------------------------------------------


def test_the_newest_export_then_the_shipped_bundle(home, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "DATA", tmp_path / "data")
    with pytest.raises(BundleError, match="styleclip-rt export"):
        store.find_bundle()
    for folder in (tmp_path / "data" / "toyfaces-bundle", home / "bundles" / "old", home / "bundles" / "new"):
        folder.mkdir(parents=True)
        (folder / "bundle.json").write_text("{}")
    os.utime(home / "bundles" / "old" / "bundle.json", (1, 1))
    (home / "bundles" / ".unfinished").mkdir()
    (home / "bundles" / "no-manifest").mkdir()
    assert [f.name for f in store.exports()] == ["new", "old"]
    assert store.find_bundle().name == "new"
    assert store.find_bundle("toyfaces").origin == "shipped"
    assert store.find_bundle("old").path == home / "bundles" / "old"
    assert store.find_bundle(home / "bundles" / "old" / "bundle.json").origin == "path"
    with pytest.raises(BundleError, match="names: new, old, toyfaces"):
        store.find_bundle("newer")


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("STYLECLIP_RT_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store.home() == tmp_path / "styleclip-rt"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.home() == tmp_path / ".local" / "share" / "styleclip-rt"


def test_export_folders_have_plain_names(home):
    assert store.export_folder("toyfaces", "bob-cut") == home / "bundles" / "toyfaces-bob-cut"
    assert store.export_folder("toyfaces", "../../etc x").parent == home / "bundles"


# Where the face is, and the way back into the photo -------------------------------------------------------------------


@pytest.fixture
def aligned(make_bundle, opened, monkeypatch):
    monkeypatch.delenv("STYLECLIP_RT_LANDMARKS", raising=False)
    return Editor.open(make_bundle("aligned", alignment={"kind": "ffhq", "output_size": 32}))


LEFT, RIGHT = landmarks((120, 90), eyes=30, mouth=32, turn=20), landmarks((300, 110), eyes=32, mouth=31)


def test_a_photo_is_aligned_before_it_is_inverted(aligned):
    photo = noise_photo(400, 240)
    result = aligned.edit(photo, "glasses", landmarks=LEFT)
    crop = aligned_crop(photo, face_square(LEFT), 32)
    np.testing.assert_array_equal(np.asarray(result.frame.crop), np.asarray(images.centre_square(crop, 8)))
    np.testing.assert_array_equal(result.w, aligned.invert(result.frame.crop))
    np.testing.assert_allclose(result.frame.quad, face_square(LEFT).corners + 0.5)
    assert (result.frame.face, result.frame.faces, result.pasted) == (1, 1, None)
    assert list(result.timings)[:3] == ["decode", "align", "invert"]


def test_several_faces_are_chosen_by_rule_or_by_number(aligned):
    photo = noise_photo(400, 240)
    by_rule = aligned.edit(photo, "glasses", landmarks=[RIGHT, LEFT])
    assert (by_rule.frame.face, by_rule.frame.faces) == (1, 2)
    assert "2 faces; this is number 1 from the left" in by_rule.notes[0]
    second = aligned.edit(photo, "glasses", landmarks=[RIGHT, LEFT], face=2)
    np.testing.assert_allclose(second.frame.quad, face_square(RIGHT).corners + 0.5)
    assert second.notes == ()


def test_a_finder_serves_in_place_of_landmarks(aligned):
    photo = noise_photo(400, 240)
    for found in ({"landmarks": lambda image: [LEFT]}, {}):
        aligned.finder = lambda image: [LEFT]
        result = aligned.edit(photo, "glasses", **found)
        np.testing.assert_allclose(result.frame.quad, face_square(LEFT).corners + 0.5)
    with pytest.raises(ImageError, match="no face was found"):
        aligned.edit(photo, "glasses", landmarks=lambda image: [])


@pytest.mark.parametrize("settings", [{"landmarks": LEFT}, {"face": 1}], ids=str)
def test_no_alignment_and_a_face_contradict_each_other(aligned, settings):
    with pytest.raises(InputError, match="--no-align"):
        aligned.edit(noise_photo(400, 240), align=False, **settings)


def test_landmarks_align_for_any_bundle_and_that_is_noted(editor):
    result = editor.edit(noise_photo(400, 240), "glasses", landmarks=LEFT)
    assert result.frame.face == 1
    assert "asks for no alignment" in result.notes[0]
    editor.finder = None
    for asked in ({"align": True}, {"face": 1}):
        with pytest.raises(InputError, match="nothing says where the face is"):
            editor.edit(noise_photo(400, 240), **asked)


@pytest.mark.parametrize("paste", [True, "crop"])
def test_the_edit_goes_back_into_the_whole_photo(aligned, paste):
    photo = noise_photo(400, 240)
    result = aligned.edit(photo, "glasses", alpha=20, landmarks=LEFT, paste=paste)
    out, before = np.asarray(result.pasted, int), np.asarray(photo, int)
    assert result.pasted.size == photo.size
    assert (out != before).any()
    left, top = result.frame.quad.min(axis=0)
    right, bottom = result.frame.quad.max(axis=0)
    out[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = 0
    before[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = 0
    np.testing.assert_array_equal(out, before)
    assert "paste" in result.timings


def test_alpha_zero_pasted_is_the_photo(aligned, editor):
    photo = noise_photo(400, 240)
    for some_editor, place in ((aligned, {"landmarks": LEFT}), (editor, {})):
        result = some_editor.edit(photo, "glasses", alpha=0, paste=True, **place)
        np.testing.assert_array_equal(np.asarray(result.pasted), np.asarray(photo))


def test_the_centred_square_goes_back_as_well(editor):
    photo = noise_photo(60, 40)
    result = editor.edit(photo, "glasses", paste="crop")
    np.testing.assert_array_equal(result.frame.quad, [(10, 0), (10, 40), (50, 40), (50, 0)])
    out = np.asarray(result.pasted, int)
    np.testing.assert_array_equal(out[:, :10], np.asarray(photo)[:, :10])
    np.testing.assert_array_equal(out[:, 50:], np.asarray(photo)[:, 50:])
    whole = np.asarray(result.image.resize((40, 40), Image.Resampling.LANCZOS), int)
    np.testing.assert_array_equal(out[:, 18:42], whole[:, 8:32])


def test_landmarks_and_paste_are_in_the_upright_photo(aligned, tmp_path):
    upright = noise_photo(400, 240)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = aligned.edit(tmp_path / "turned.png", "glasses", alpha=9, landmarks=LEFT, paste=True)
    straight = aligned.edit(upright, "glasses", alpha=9, landmarks=LEFT, paste=True)
    assert turned.pasted.size == (400, 240)
    np.testing.assert_array_equal(np.asarray(turned.pasted), np.asarray(straight.pasted))
    assert not turned.pasted.getexif()


def test_a_large_jpeg_is_pasted_at_its_own_resolution(editor, tmp_path):
    smooth_photo(1600, 1200).save(tmp_path / "large.jpg", quality=95)
    assert editor.edit(tmp_path / "large.jpg", "glasses").frame.photo.width < 1600  # decoded reduced
    result = editor.edit(tmp_path / "large.jpg", "glasses", alpha=0, paste=True)
    assert result.pasted.size == (1600, 1200)
    np.testing.assert_array_equal(np.asarray(result.pasted), np.asarray(images.read_image(tmp_path / "large.jpg")))


def test_pasting_keeps_the_limits_on_pixels(editor):
    with pytest.raises(ImageError, match="at most 120 million"):
        editor.edit(Image.new("1", (12000, 12000)), "glasses", paste=True)


def test_an_unknown_way_to_paste_is_refused_before_any_work(editor, photo):
    with pytest.raises(InputError, match="paste"):
        editor.edit(photo, "glasses", paste="everything")
    assert not editor.bundle.runs


def test_a_bundle_of_an_unknown_alignment_does_not_open(make_bundle, opened):
    with pytest.raises(BundleError, match="none, ffhq"):
        Editor.open(make_bundle("odd", alignment={"kind": "cats"}))

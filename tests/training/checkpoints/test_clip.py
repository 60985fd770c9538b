"""CLIP files into packs: OpenAI's archives by content, open_clip's by name; embeddings against two implementations."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.archives import Source, read_source  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.clip import choose, import_clip, recognises  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.clip_files import activation_of, read_clip  # noqa: E402
from styleclip_rt.runtime.training.pack import load_pack  # noqa: E402
from styleclip_rt.runtime.training.pack_writer import Component, save_pack  # noqa: E402

from . import openai_clip as openai  # noqa: E402

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
TINY = {
    "embed_dim": 48,
    "vision_cfg": {"layers": 2, "width": 128, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


def tokens(count: int = 3) -> torch.Tensor:
    """Rows of different length: bos, ids, eos, pad 0."""
    rng = torch.Generator().manual_seed(5)
    rows = torch.zeros(count, 77, dtype=torch.int64)
    for row, length in zip(rows, (4, 20, 77), strict=False):
        row[:length] = torch.randint(1, 49000, (length,), generator=rng)
        row[0], row[length - 1] = 49406, 49407
    return rows


def pictures(size: int = 64, count: int = 3) -> torch.Tensor:
    """Images in 0..1."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(6))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double()).min())


def packed(path, tmp_path, architecture=None):
    """The pack of an imported file, opened again from disk, and what the importer gave."""
    parts = import_clip(read_source(path), architecture)
    components = {p.component: Component(p.content, p.config, p.licence, exact=True) for p in parts}
    return load_pack(save_pack(tmp_path / "pack", "clip", components)), *parts


def assert_equal_to_the_maths(pack, state, quick: bool) -> None:
    """Both towers against the straight-line implementation; the other activation is a thousand times further off."""
    images, rows = pictures(), tokens()
    ours = pack.clip.encode_image(images * 2 - 1), pack.clip.encode_text(rows)
    normalised = (images - MEAN) / STD
    assert cosine(ours[0], openai.encode_image(state, normalised, quick)) > 1 - 1e-8
    assert cosine(ours[1], openai.encode_text(state, rows, quick)) > 1 - 1e-8
    assert cosine(ours[1], openai.encode_text(state, rows, not quick)) < 1 - 1e-5
    if "visual.proj" in state:
        assert cosine(ours[0], openai.encode_image(state, normalised, not quick)) < 1 - 1e-5


@pytest.mark.parametrize("sizes", [openai.VIT, openai.RESNET], ids=["ViT", "ResNet"])
def test_openais_archive_is_read_without_running_it(tmp_path, sizes):
    state = openai.halved(openai.random_state(sizes))
    path = openai.write_archive(tmp_path / "any-name.bin", openai.random_state(sizes), sizes)
    assert recognises(read_source(path)) == "OpenAI CLIP"
    pack, clip, tokenizer = packed(path, tmp_path)
    assert clip.config["quick_gelu"] is True
    assert clip.config["text_cfg"]["heads"] == 2
    assert clip.config["vision_cfg"]["image_size"] == 64
    assert clip.config["mean"] == pytest.approx(MEAN.flatten().tolist())
    assert tokenizer.config["context_length"] == 77
    for name, tensor in clip.content.items():  # float16 in the file, exactly that in the pack
        assert torch.equal(tensor, state[name].float())
    assert set(clip.content) == set(state)
    assert_equal_to_the_maths(pack, {k: v.float() for k, v in state.items()}, quick=True)


def test_openais_state_dict_is_known_by_its_three_sizes(tmp_path):
    state = openai.random_state(openai.VIT)
    sizes = {
        "input_resolution": torch.tensor(64),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(state | sizes, tmp_path / "clip.pt")
    pack, clip, _ = packed(tmp_path / "clip.pt", tmp_path)
    assert (clip.format, clip.config["quick_gelu"]) == ("OpenAI CLIP", True)
    assert_equal_to_the_maths(pack, state, quick=True)


@pytest.mark.parametrize("quick", [False, True], ids=["GELU", "QuickGELU"])
def test_an_open_clip_file_with_its_config_beside_it(tmp_path, quick):
    from safetensors.torch import save_file

    state = openai.random_state(openai.VIT, seed=1)
    front = {"mean": MEAN.flatten().tolist(), "std": STD.flatten().tolist(), "interpolation": "bilinear", "size": 64}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    document = {"model_cfg": {**TINY, "quick_gelu": quick}, "preprocess_cfg": front}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    pack, clip, _ = packed(tmp_path / "open_clip_model.safetensors", tmp_path)
    assert (clip.format, clip.config["quick_gelu"], clip.config["interpolation"]) == ("open_clip", quick, "bilinear")
    assert pack.clip.preprocess.interpolation == "bilinear"
    assert_equal_to_the_maths(pack, state, quick)


@pytest.mark.parametrize("layout", ["plain", "module.", "training", "custom text", "scalar as vector"])
def test_layouts_of_open_clip_files_give_one_network(tmp_path, layout):
    """All are the weights of one open_clip model; the pack's embeddings are that model's own forward."""
    from open_clip.model import CLIP, CustomTextCLIP

    torch.manual_seed(3)
    model = (CustomTextCLIP if layout == "custom text" else CLIP)(**TINY).eval()
    state = model.state_dict()
    content = {
        "plain": state,
        "custom text": state,
        "module.": {f"module.{k}": v for k, v in state.items()},
        "training": {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}},
        "scalar as vector": {k: v.reshape(1) if k == "logit_scale" else v for k, v in state.items()},
    }[layout]
    if layout == "training":
        content["optimizer"] = torch.optim.AdamW(model.parameters()).state_dict()
    torch.save(content, tmp_path / "epoch_3.pt")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    pack, clip, _ = packed(tmp_path / "epoch_3.pt", tmp_path, str(tmp_path / "tiny.json"))
    images, rows = pictures(), tokens()
    with torch.no_grad():
        assert cosine(pack.clip.encode_image(images * 2 - 1), model.encode_image((images - MEAN) / STD)) > 0.999999
        assert cosine(pack.clip.encode_text(rows), model.encode_text(rows)) > 0.999999
    assert float(pack.clip.logit_scale) == pytest.approx(model.logit_scale.item())
    assert clip.config["quick_gelu"] is False


@pytest.mark.parametrize("quick", [False, True], ids=["GELU", "QuickGELU"])
def test_the_program_of_a_torchscript_archive_tells_the_activation(tmp_path, quick):
    from open_clip.model import CLIP

    model = CLIP(**TINY, quick_gelu=quick).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated; archives of it are not gone
        torch.jit.save(torch.jit.script(model), str(tmp_path / "scripted.pt"))
    assert activation_of(tmp_path / "scripted.pt") is quick
    file = read_clip(read_source(tmp_path / "scripted.pt"))
    assert (file.openai, file.quick_gelu) == (False, quick)
    (tmp_path / "tiny.json").write_text(json.dumps({**TINY, "quick_gelu": not quick}))
    found = choose(file, str(tmp_path / "tiny.json"))
    assert found.config["quick_gelu"] is quick
    assert "as in the file" in found.notes[0]


def described(tmp_path, shapes, name="weights.pt", kind="torch") -> Source:
    """A source with tensors of these shapes that take no memory."""
    arrays = {key: np.broadcast_to(np.float32(0.5), shape) for key, shape in shapes.items()}
    return Source(tmp_path / name, kind, "0" * 64, 1, arrays)


def full_size(**changes) -> dict[str, tuple[int, ...]]:
    """Shapes of ViT-B/32."""
    sizes = openai.Sizes(512, 768, 12, 32, 224, None, 512, 12)
    return {**openai.clip_shapes(sizes), **changes}


def test_a_file_that_cannot_tell_its_activation_is_asked_about(tmp_path):
    with pytest.raises(PackError, match=r"ViT-B-32 and ViT-B-32-quickgelu.*--clip-architecture"):
        choose(read_clip(described(tmp_path, full_size())), None)


def test_a_name_settles_the_activation_and_a_tag_overrules_the_name(tmp_path):
    file = read_clip(described(tmp_path, full_size()))
    activations = {name: choose(file, name).config["quick_gelu"] for name in ("ViT-B-32", "ViT-B-32-quickgelu")}
    assert activations == {"ViT-B-32": False, "ViT-B-32-quickgelu": True}
    assert choose(file, "ViT-B-32/openai").config["quick_gelu"] is True
    assert choose(file, "ViT-B-32-quickgelu:laion2b_s34b_b79k").config["quick_gelu"] is False


def test_openais_file_keeps_its_activation_under_any_name(tmp_path):
    marks = {"input_resolution": (), "context_length": (), "vocab_size": ()}
    file = read_clip(described(tmp_path, full_size(**marks)))
    assert choose(file, None).config["quick_gelu"] is True
    found = choose(file, "ViT-B-32")
    assert found.config["quick_gelu"] is True
    assert "activation is QuickGELU, as in the file" in found.notes[0]


def test_the_files_own_sizes_are_kept(tmp_path):
    """open_clip would resample the position embeddings to the name's size."""
    shapes = full_size(**{"visual.positional_embedding": (65, 768), "positional_embedding": (32, 512)})
    found = choose(read_clip(described(tmp_path, shapes)), "ViT-B-32")
    assert found.config["vision_cfg"]["image_size"] == 256
    assert found.config["text_cfg"]["context_length"] == 32
    assert len(found.notes) == 2


def test_weights_of_clips_that_have_other_colours(tmp_path):
    from styleclip_rt.runtime.training.checkpoints.clip_architectures import named

    assert named("ViT-L-14/laion2b_s32b_b82k").config["mean"] == [0.5, 0.5, 0.5]
    found = named("ViT-L-14")
    assert found.config["mean"] == pytest.approx(MEAN.flatten().tolist())
    assert "laion2b_s32b_b82k" in found.notes[0]
    assert named("ViT-B-16-SigLIP").config["std"] == [0.5, 0.5, 0.5]
    assert named("MobileCLIP-S1").config["interpolation"] == "bilinear"


BAD = {
    "transformers": ({"text_model.a.weight": (2, 2), "vision_model.b.weight": (2, 2)}, "layout of the library transf"),
    "one tower": ({"conv1.weight": (2, 2), "class_embedding": (2,)}, "one tower alone"),
    "big_vision": ({"params/img/head/kernel": (2, 2)}, "big_vision"),
    "Apple": ({"image_encoder.model.patch_emb.0.block.conv.weight": (2, 2)}, "Apple's MobileCLIP"),
    "another network": ({"synthesis.b4.const": (2, 2)}, "is no CLIP: it holds synthesis.b4.const"),
    "nothing": ({}, "it holds no tensor"),
}


@pytest.mark.parametrize(("shapes", "message"), BAD.values(), ids=BAD)
def test_files_that_are_no_clip_of_open_clip(tmp_path, shapes, message):
    source = described(tmp_path, shapes)
    assert recognises(source) is None
    with pytest.raises(PackError, match=message):
        import_clip(source)


def test_all_mismatches_are_named_at_once(tmp_path):
    shapes = openai.clip_shapes(openai.VIT) | {"input_resolution": (), "context_length": (), "vocab_size": ()}
    shapes |= {"visual.ln_post.weight": (7,), "surprise.weight": (3,), "visual.surprise": (3,)}
    del shapes["ln_final.bias"]
    with pytest.raises(PackError) as error:
        import_clip(described(tmp_path, shapes))
    for part in (
        "surprise.weight [3]",
        "visual.surprise [3]",
        "visual.ln_post.weight is [7]",
        "missing: ln_final.bias",
    ):
        assert part in str(error.value)


def test_values_that_are_not_finite_are_refused(tmp_path):
    state = openai.random_state(openai.VIT)
    state["ln_final.weight"][3] = float("nan")
    torch.save(state, tmp_path / "clip.pt")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    with pytest.raises(PackError, match=r"not finite: ln_final\.weight"):
        import_clip(read_source(tmp_path / "clip.pt"), str(tmp_path / "tiny.json"))


@pytest.mark.parametrize(
    "broken",
    [
        {"visual.conv1.weight": ()},
        {"visual.positional_embedding": (0, 128)},
        {"ln_final.weight": (32,)},
        {"text_projection": (128,)},
        {"positional_embedding": ()},
    ],
    ids=str,
)
def test_misshapen_archives_end_in_one_clear_error(tmp_path, broken):
    marks = {"input_resolution": (), "context_length": (), "vocab_size": ()}
    with pytest.raises(PackError, match=r"as OpenAI CLIP|OpenAI's rules|open_clip refused"):
        import_clip(described(tmp_path, {**openai.clip_shapes(openai.VIT), **marks, **broken}))


def test_a_small_vocabulary_without_a_tokenizer_is_refused(tmp_path):
    shapes = openai.clip_shapes(openai.VIT) | {"input_resolution": (), "context_length": (), "vocab_size": ()}
    with pytest.raises(PackError, match="300 ids, CLIP's has 49408"):
        import_clip(described(tmp_path, {**shapes, "token_embedding.weight": (300, 128)}))


def test_names_that_mean_nothing():
    with pytest.raises(InputError, match="neither a file nor an architecture"):
        import_clip("missing.pt")
    with pytest.raises(InputError, match="knows no weights 'mine' of ViT-B-32; it knows"):
        import_clip(None, "ViT-B-32/mine")
    with pytest.raises(InputError, match="publishes no weights of ViT-S-32"):
        import_clip("ViT-S-32")
    with pytest.raises(InputError, match="several published weights; expected one of ViT-H-14/"):
        import_clip("ViT-H-14")
    with pytest.raises(InputError, match="no CLIP named"):
        import_clip(None)
    with pytest.raises(InputError, match="give one of the two"):
        import_clip("ViT-B-32", "ViT-B-32")

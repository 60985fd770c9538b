"""CLIP as the library transformers saves it: the embeddings are those of the maths, config.json tells the rest."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.archives import read_source  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.clip import choose, import_clip, recognises  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.clip_files import read_clip  # noqa: E402

from . import openai_clip as openai  # noqa: E402
from .test_clip import assert_equal_to_the_maths, described, full_size, packed  # noqa: E402

TINY = {
    "projection_dim": 48,
    "text_config": {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 2},
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 16,
        "image_size": 64,
    },
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def block_to_transformers(stem: str, tower: str, state: dict) -> dict:
    """One residual block, its queries, keys and values cut apart."""
    number, out = stem.rsplit(".", 1)[1], {}
    for kind in ("weight", "bias"):
        whole = state[f"{stem}.attn.in_proj_{kind}"]
        for i, letter in enumerate("qkv"):
            part = whole[i * len(whole) // 3 : (i + 1) * len(whole) // 3].clone()
            out[f"{tower}.encoder.layers.{number}.self_attn.{letter}_proj.{kind}"] = part
        for ours, theirs in BLOCK.items():
            out[f"{tower}.encoder.layers.{number}.{theirs}.{kind}"] = state[f"{stem}.{ours}.{kind}"]
    return out


def as_transformers(state: dict) -> dict:
    """A state dict of OpenAI's ViT under the names of `CLIPModel`, buffers of positions included."""
    out = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    for kind in ("weight", "bias"):
        out[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        out[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        out[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
    for i in range(2):
        out |= block_to_transformers(f"transformer.resblocks.{i}", "text_model", state)
        out |= block_to_transformers(f"visual.transformer.resblocks.{i}", "vision_model", state)
    return out


def with_activation(name: str | None) -> dict:
    """TINY's config.json; the library leaves out what is its default, QuickGELU."""
    if name is None:
        return TINY
    return {**TINY, **{f"{part}_config": {**TINY[f"{part}_config"], "hidden_act": name} for part in ("text", "vision")}}


@pytest.mark.parametrize("activation", [None, "quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_file_with_its_config_gives_the_embeddings_of_the_maths(tmp_path, activation, kind):
    from safetensors.torch import save_file

    state = openai.random_state(openai.VIT, seed=4)
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    (save_file if kind == "safetensors" else torch.save)(as_transformers(state), path)
    (tmp_path / "config.json").write_text(json.dumps(with_activation(activation)))
    front = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**front, "resample": 2, "crop_size": 64}))
    assert recognises(read_source(path)) == "transformers CLIP"
    pack, clip, tokenizer = packed(path, tmp_path)
    assert (clip.format, clip.config["architecture"]) == ("transformers CLIP", "config.json")
    assert clip.config["interpolation"] == "bilinear"
    assert clip.config["vision_cfg"]["image_size"] == 64
    assert tokenizer.config["context_length"] == 77
    for name, tensor in clip.content.items():
        assert torch.equal(tensor, state[name])
    assert set(clip.content) == set(state)
    assert_equal_to_the_maths(pack, state, quick=activation != "gelu")


def full_size_in_transformers(tmp_path):
    """Shapes of ViT-B/32 as the library names them, without memory."""
    shapes = full_size()
    renamed = {}
    for name, tensor in as_transformers(
        {k: torch.empty(v, device="meta") for k, v in two_blocks(shapes).items()}
    ).items():
        renamed[name] = tuple(tensor.shape)
    for key in [key for key in renamed if ".layers.1." in key]:
        for i in range(2, 12):
            renamed[key.replace(".layers.1.", f".layers.{i}.")] = renamed[key]
    return described(tmp_path, renamed)


def two_blocks(shapes: dict) -> dict:
    """The shapes of the blocks 0 and 1, and of all that is no block."""
    return {k: v for k, v in shapes.items() if "resblocks." not in k or k.split("resblocks.")[1][:2] in ("0.", "1.")}


def test_without_its_config_the_activation_is_asked_for(tmp_path):
    file = read_clip(full_size_in_transformers(tmp_path))
    with pytest.raises(PackError, match=r"ViT-B-32 and ViT-B-32-quickgelu.*--clip-architecture"):
        choose(file, None)
    assert choose(file, "ViT-B-32/openai").config["quick_gelu"] is True


def test_a_config_that_repeats_its_parts_counts_as_the_library_reads_it(tmp_path):
    """Older files have `text_config_dict` beside `text_config`; where there is one, it is what counts."""
    config = {**with_activation("gelu"), "text_config_dict": None}
    config["vision_config_dict"] = config["vision_config"]
    config["vision_config"] = {"hidden_act": "quick_gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(as_transformers(openai.random_state(openai.VIT)), tmp_path / "pytorch_model.bin")
    found = choose(read_clip(read_source(tmp_path / "pytorch_model.bin")), None)
    assert found.config["quick_gelu"] is False
    assert found.config["vision_cfg"]["head_width"] == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_model.head.probe": (1, 1, 128)}, r"not those of its CLIPModel: vision_model\.head\.probe"),
        ({"logit_bias": (1,)}, r"not those of its CLIPModel: logit_bias"),
        ({"text_model.encoder.layers.1.self_attn.k_proj.weight": None}, r"q, k, v of transformer\.resblocks\.1\.attn"),
        (
            {"vision_model.encoder.layers.0.self_attn.v_proj.bias": (7,)},
            r"q, k, v of visual\.transformer\.resblocks\.0",
        ),
        ({"vision_model.post_layernorm.bias": None}, r"missing: visual\.ln_post\.bias"),
        ({"text_model.encoder.layers.2.mlp.fc1.bias": (512,)}, r"no place for: transformer\.resblocks\.2\.mlp\.c_fc"),
    ],
    ids=["SigLIP's head", "SigLIP's bias", "no keys", "short values", "no norm", "a third block"],
)
def test_what_is_no_clip_model_is_named(tmp_path, change, message):
    shapes = {k: tuple(v.shape) for k, v in as_transformers(openai.random_state(openai.VIT)).items()}
    shapes = {key: shape for key, shape in {**shapes, **change}.items() if shape is not None}
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(PackError, match=message):
        import_clip(described(tmp_path, shapes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no object"),
        ("{", "cannot be read as JSON"),
        (json.dumps(with_activation("relu")), "not that of a CLIPModel: KeyError"),
        (json.dumps({**TINY, "text_config": {"hidden_act": "gelu"}}), "expected one activation"),
        (json.dumps({**TINY, "vision_config": {"layer_norm_eps": 1e-6}}), "expected one activation and 1e-05"),
        (json.dumps({**TINY, "text_config": {"hidden_size": "wide"}}), "not that of a CLIPModel: ValueError"),
        (json.dumps({**TINY, "vision_config": {"num_attention_heads": 0}}), "not that of a CLIPModel: ZeroDivision"),
        (json.dumps({**TINY, "text_config": [1]}), "does not fit"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    shapes = {k: tuple(v.shape) for k, v in as_transformers(openai.random_state(openai.VIT)).items()}
    with pytest.raises(PackError, match=message):
        import_clip(described(tmp_path, shapes))
